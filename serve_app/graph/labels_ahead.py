"""`LabelsAhead`: encodes a request's own labels while its images are decoded and encoded."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from serve_app.graph.calls import InnerCalls
from serve_app.tagging.options import RequestedVocabulary

MAX_REMEMBERED = 1_024
"""Maximum number of requested vocabularies that are remembered as sent."""


class LabelsAhead:
    """Sends vocabularies of requests to the Postprocessor, unless they were sent recently."""

    def __init__(
        self,
        score: InnerCalls,
        spawn: Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"],
    ) -> None:
        """Start with no vocabularies sent.

        Args:
            score: Calls to the Postprocessor.
            spawn: Starts a call that belongs to no request.
        """
        self._score = score
        self._spawn = spawn
        self._sent: OrderedDict[RequestedVocabulary, None] = OrderedDict()

    def send(self, requested: RequestedVocabulary) -> None:
        """Send the vocabulary of a request to be encoded, unless it is registered."""
        if requested.is_registered:
            return
        if requested not in self._sent:
            self._spawn(self._score("prepare", requested))
        self._sent[requested] = None
        self._sent.move_to_end(requested)
        while len(self._sent) > MAX_REMEMBERED:
            self._sent.popitem(last=False)
