"""LitServe with batching on, doing the same work with the same functions: our decoding, our towers, our scoring.

`bench/.venv/bin/python -m bench.litserve_app CONFIG PORT`, in the benchmark's own environment.
"""

import sys
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import UploadFile

from serve_app.config import load_config
from serve_app.local_tagger import LocalTagger
from serve_app.siglip.inputs import collate
from serve_app.tagging.selection import tag_embeddings
from serve_app.tagging.settings import TagOptions


class TagAPI(litserve.LitAPI):
    """Decode, encode in batches, select."""

    def __init__(self, config: Path, **options: Any) -> None:
        super().__init__(**options)
        self.config = config

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.tagger = LocalTagger(load_config(self.config))

    def decode_request(self, request: dict[str, UploadFile]) -> Any:
        return self.tagger.preparer.prepare(request["request"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        return collate(inputs)

    def predict(self, batch: Any) -> Any:
        return self.tagger._images.encode(batch)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, embeds: Any) -> dict[str, Any]:
        options = TagOptions()
        (tags,) = tag_embeddings(embeds[None], self.tagger.bank_for(options), self.tagger.head, [self.tagger.settings.rule_for(options)])
        return {"tags": [{"label": tag.label, "confidence": tag.confidence} for tag in tags]}


if __name__ == "__main__":
    api = TagAPI(Path(sys.argv[1]), max_batch_size=16, batch_timeout=0.005, api_path="/v1/tag")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="error")
