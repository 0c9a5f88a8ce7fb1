"""The Python client of a running service: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:8000") as client:
        print(client.tag("photo.jpg").tags)

The client raises the exceptions of `serve_app.errors`. It needs only httpx and pydantic: it does
not import NumPy, YAML, torch or Ray, and a test installs it without them.
"""

from serve_app.client.async_client import AsyncClient
from serve_app.client.folders import TaggedFile
from serve_app.client.images import Image
from serve_app.client.responses import (
    ModelCard,
    Tag,
    Tagged,
    Vocabulary,
    VocabularyCard,
    VocabularyTag,
)
from serve_app.client.sync_client import Client

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
