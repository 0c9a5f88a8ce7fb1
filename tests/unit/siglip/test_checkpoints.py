"""An incomplete checkpoint folder is refused with the file's name before any weight is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Family, read_checkpoint

NEEDED = {
    "siglip": ["config.json", "model.safetensors", "preprocessor_config.json", "spiece.model"],
    "siglip2": ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"],
    "siglip2-naflex": [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ],
}


def test_facts_are_those_of_the_files(tiny: Callable[[str], Path]) -> None:
    """Family, sizes and lengths are read and not assumed."""
    siglip, siglip2, naflex = (read_checkpoint(tiny(family)) for family in NEEDED)
    assert (siglip.family, siglip2.family, naflex.family) == (
        Family.SIGLIP,
        Family.SIGLIP2,
        Family.NAFLEX,
    )
    assert (siglip.context_length, siglip2.context_length, naflex.context_length) == (16, 64, 64)
    assert (siglip.image_size_px, siglip2.image_size_px, naflex.image_size_px) == (32, 32, None)
    assert (siglip.resample, siglip2.resample, naflex.resample) == (3, 2, 2)
    assert siglip.embedding_width == 64


@pytest.mark.parametrize(
    ("family", "file"), [(family, file) for family, files in NEEDED.items() for file in files]
)
def test_missing_file_is_named(
    tiny: Callable[[str], Path], tmp_path: Path, family: str, file: str
) -> None:
    """Trap 5: any missing file stops the load; transformers ignores a missing tokenizer.json."""
    folder = shutil.copytree(tiny(family), tmp_path / "c")
    (folder / file).unlink()
    with pytest.raises(ConfigError, match=file.replace(".", r"\.")):
        read_checkpoint(folder)


def test_processor_config_of_transformers_5_is_read(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The processor_config.json of transformers 5 is read; the image processor is nested in it."""
    folder = shutil.copytree(tiny("siglip"), tmp_path / "c")
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": content | {"resample": 2}})
    )
    assert read_checkpoint(folder).resample == 2


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model_type": "clip"}', '{"model_type": "siglip"}']
)
def test_config_of_something_else_is_refused(
    tiny: Callable[[str], Path], tmp_path: Path, content: str
) -> None:
    """Broken JSON, a list, another model and a missing tower all name config.json."""
    folder = shutil.copytree(tiny("siglip"), tmp_path / "c")
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_checkpoint(folder)


def test_pickled_weights_are_not_loaded(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Only safetensors: a folder with pytorch_model.bin alone is refused and says so."""
    folder = shutil.copytree(tiny("siglip"), tmp_path / "c")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="only safetensors"):
        read_checkpoint(folder)
