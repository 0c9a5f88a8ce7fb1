"""The Python client of a running service: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:8000") as client:
        print(client.tag("photo.jpg").tags)

What goes wrong is raised as the exceptions of `serve_app.errors`. Needs httpx and pydantic; no
torch, no Ray.
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
