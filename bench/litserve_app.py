"""LitServe with batching, in two versions: with our functions, and with transformers.

`bench/.venv/bin/python -m bench.litserve_app CONFIG PORT ours|usual` runs in the benchmark's own
environment. `ours` decodes, encodes and scores with this project's code, so only the serving
differs. `usual` uses the processor and the model of transformers, and encodes the labels once at
the start. LitServe reads a form only if `decode_request` takes a `Request`; it then passes the
fields of the form.
"""

import sys
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import Request
from PIL import Image
from transformers import AutoModel, AutoTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from serve_app.config.service import load_config
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.inputs import collate
from serve_app.tagging.options import TagOptions


class TagAPI(litserve.LitAPI):
    """Decode, encode in batches, select."""

    def __init__(self, config: Path, **options: Any) -> None:
        super().__init__(**options)
        self.config = config

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.tagger = LocalTagger(load_config(self.config))

    def decode_request(self, request: Request) -> Any:
        return self.tagger.preparer.prepare(request["request"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        return collate(inputs)

    def predict(self, batch: Any) -> Any:
        return self.tagger._images.encode(batch)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, embeds: Any) -> dict[str, Any]:
        options = TagOptions()
        (tags,) = self.tagger.scorer.scoring_for(options).tag(embeds[None])
        return {"tags": [{"label": tag.label, "confidence": tag.confidence} for tag in tags]}


class UsualAPI(litserve.LitAPI):
    """The processor and the model of transformers, as in LitServe's own examples."""

    def __init__(self, config: Path, **options: Any) -> None:
        super().__init__(**options)
        self.config = load_config(config)

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        folder = self.config.siglip.model_source
        self.labels = self.config.tag_settings().vocabulary.labels
        self.model = AutoModel.from_pretrained(folder).eval()
        self.processor = SiglipImageProcessorPil.from_pretrained(folder)
        length = self.model.config.text_config.max_position_embeddings
        prompts = [f"this is a photo of {label}." for label in self.labels]
        ids = AutoTokenizer.from_pretrained(folder)(
            prompts, padding="max_length", max_length=length, return_tensors="pt"
        )["input_ids"]
        with torch.inference_mode():
            text = self.model.text_model(input_ids=ids).pooler_output
        self.text = torch.nn.functional.normalize(text, dim=-1)

    def decode_request(self, request: Request) -> Any:
        image = Image.open(request["request"].file).convert("RGB")
        return self.processor(image, return_tensors="pt")["pixel_values"][0]

    def batch(self, inputs: list[Any]) -> Any:
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, batch: Any) -> Any:
        image = torch.nn.functional.normalize(
            self.model.vision_model(pixel_values=batch).pooler_output, dim=-1
        )
        return torch.sigmoid(
            image @ self.text.T * self.model.logit_scale.exp() + self.model.logit_bias
        )

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, scores: Any) -> dict[str, Any]:
        return {
            "tags": [
                {"label": label, "confidence": s}
                for label, s in zip(self.labels, scores.tolist(), strict=True)
                if s >= 0.5
            ]
        }


if __name__ == "__main__":
    kind = {"ours": TagAPI, "usual": UsualAPI}[sys.argv[3]]
    api = kind(Path(sys.argv[1]), max_batch_size=16, batch_timeout=0.005, api_path="/v1/tag")
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=int(sys.argv[2]), generate_client_file=False, log_level="error"
    )
