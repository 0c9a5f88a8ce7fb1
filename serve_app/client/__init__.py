"""The Python client of a running service: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:8000") as client:
        print(client.tag("photo.jpg").tags)

Errors are raised as the exceptions of `serve_app.errors`. The client needs httpx and pydantic only:
it imports no NumPy, no YAML, no torch and no Ray, and a test installs it without them.
"""

from serve_app.client.answers import (
    ModelCard,
    Tag,
    Tagged,
    Vocabulary,
    VocabularyCard,
    VocabularyTag,
)
from serve_app.client.awaited import AsyncClient
from serve_app.client.blocking import Client
from serve_app.client.folders import TaggedFile
from serve_app.client.images import Image

__all__ = [
    "AsyncClient",
    "Client",
    "Image",
    "ModelCard",
    "Tag",
    "Tagged",
    "TaggedFile",
    "Vocabulary",
    "VocabularyCard",
    "VocabularyTag",
]
