"""An ASGI app around the transformers pipeline, as an alternative to this project.

It tags one image at a time.

`python -m bench.plain_app CHECKPOINT LABELS PORT`
"""

import io
import sys
from pathlib import Path

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import pipeline

from serve_app.tagging.vocabulary_files import read_vocabulary_file


def make_app(checkpoint: str, labels: list[str]) -> Starlette:
    classify = pipeline("zero-shot-image-classification", model=checkpoint, device="cpu")
    # the pipeline pads every text to 64 tokens, and the demo checkpoint, which takes 16, would
    # crash: pass the length that the pipeline should have read
    classify.tokenizer.model_max_length = classify.model.config.text_config.max_position_embeddings
    preprocess = classify.tokenizer.__class__.__call__
    length = classify.tokenizer.model_max_length
    classify.tokenizer.__class__.__call__ = lambda self, *a, **k: preprocess(
        self, *a, **(k | {"max_length": length})
    )  # type: ignore[method-assign]

    def tag(data: bytes) -> list[dict[str, float]]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [
            r
            for r in classify(
                image, candidate_labels=labels, hypothesis_template="this is a photo of {}."
            )
            if r["score"] > 0.5
        ]

    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse({"tags": await run_in_threadpool(tag, await request.body())})

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({})

    return Starlette(
        routes=[Route("/v1/tag", endpoint, methods=["POST"]), Route("/health", health)]
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    words = [entry.tag.label for entry in read_vocabulary_file(Path(sys.argv[2])).entries]
    uvicorn.run(make_app(sys.argv[1], words), port=int(sys.argv[3]), log_level="error")
