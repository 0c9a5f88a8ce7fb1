"""How much of a request's body has arrived, counted by each middleware that needs to know."""

from starlette.types import Message


class BodyProgress:
    """Counts the messages of one request's body.

    Attributes:
        num_bytes: Bytes received.
        is_complete: Whether the last message has arrived.
    """

    __slots__ = ("is_complete", "num_bytes")

    def __init__(self) -> None:
        self.num_bytes = 0
        self.is_complete = False

    def count(self, message: Message) -> None:
        """Count a message of ASGI's `receive`. A client that disconnects completes its body."""
        self.num_bytes += len(message.get("body", b""))
        self.is_complete = self.is_complete or not message.get("more_body", False)
