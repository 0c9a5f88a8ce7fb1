"""Images and configurations that several benchmarks use."""

from pathlib import Path

import yaml
from PIL import Image

from bench.servers import ROOT
from serve_app.demo import scenes

LABELS = ROOT / "configs" / "vocabularies" / "shapes.yaml"
IMAGE_COUNT = 32
IMAGE_SIZE_PX = (640, 480)
SMALL_SIZE_PX = (64, 64)


def draw_images(folder: Path) -> list[str]:
    """Write JPEGs of drawn scenes and return their paths."""
    paths = []
    for number, scene in enumerate(scenes.sample_scenes(17, IMAGE_COUNT, scenes.SEEN)):
        path = folder / f"{number}.jpg"
        scenes.draw(scene, *IMAGE_SIZE_PX).save(path, quality=90)
        paths.append(str(path))
    return paths


def small_copies(folder: Path, images: list[str]) -> list[str]:
    """Write 64 × 64 copies of images and return their paths; decoding them costs little."""
    paths = []
    for path in images:
        small = folder / f"small-{Path(path).name}"
        Image.open(path).resize(SMALL_SIZE_PX).save(small, quality=90)
        paths.append(str(small))
    return paths


def write_config(path: Path, model: str, encoder_cpus: float, batch_size: int, port: int) -> Path:
    """Write a configuration of the service for this machine."""
    siglip = {
        "model": model,
        "batch_size": batch_size,
        "confidence_threshold": 0.5,
        "dtype": "float32",
    }
    serving = {
        "port": port,
        "request_timeout_s": 300,
        "preprocessor": {"num_cpus": 0.5},
        "image_encoder": {"num_cpus": encoder_cpus},
        "text_encoder": {"num_cpus": 0.25},
        "postprocessor": {"num_cpus": 0.25},
    }
    config = {"labels": str(LABELS), "plugins": {"siglip": siglip}, "serving": serving}
    path.write_text(yaml.safe_dump(config))
    return path
