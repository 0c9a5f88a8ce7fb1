"""The whole pipeline on checkpoints whose files say something unusual, against transformers on the
same folder.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.commands.score import score_file
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import InvalidRequest
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.identity import checkpoint_fingerprint
from serve_app.tagging.options import TagOptions
from tests.parity.test_local_tagger import (
    PICTURES,
    TEMPLATE,
    TOLERANCE,
    clean,
    make_tagger,
    reference_logits,
    tagged_logits,
)
from tests.tiny_checkpoints import LABELS


def assert_same_logits(folder: Path, family: str) -> None:
    """Assert that the pipeline gives the logits of transformers' whole model and image
    processor.
    """
    prompts = [TEMPLATE.format(label=clean(label, family)) for label in LABELS]
    expected = reference_logits(folder, PICTURES, prompts)
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()) / 100)
    np.testing.assert_allclose(
        tagged_logits(make_tagger(folder), PICTURES), expected, atol=tolerance
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": 0.3, "image_std": [0.2, 0.3, 0.4]},
        {"resample": 1},
    ],
    ids=str,
)
def test_image_settings_reach_the_logits(
    checkpoint_folder: Path, tmp_path: Path, family: str, change: dict[str, Any], nested: bool
) -> None:
    """In either of the two files; where both are there, the old one says something else."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "c")
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text())
    if nested:
        (folder / "processor_config.json").write_text(
            json.dumps({"image_processor": content | change})
        )
    else:
        path.write_text(json.dumps(content | change))
    assert_same_logits(folder, family)


def test_weights_beside_an_older_index_are_one_source(
    checkpoint_folder: Path, tmp_path: Path, family: str
) -> None:
    """Both are there after a checkpoint was saved twice; the shards' scale and bias would move
    every logit by 10.
    """
    folder = shutil.copytree(checkpoint_folder, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    old = tensors | {"logit_scale": torch.tensor([1.0]), "logit_bias": torch.tensor([-2.0])}
    save_file(old, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_logits(folder, family)


def test_shards_are_the_whole_file(checkpoint_folder: Path, tmp_path: Path, family: str) -> None:
    """The same weights in two files."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file(
            {name: tensors[name] for name in names}, folder / shard, metadata={"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    assert_same_logits(folder, family)


def test_embeddings_of_other_image_settings_are_not_scored(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored with one mean of the pixels, scored after it was changed in the file that transformers
    5 writes.
    """
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": content}))
    config = config_of(folder)
    stored = LocalTagger(config).encode_images(PICTURES)
    path = tmp_path / "stored.safetensors"
    fingerprint = checkpoint_fingerprint(load_checkpoint(str(folder)))
    names = json.dumps(["a", "b", "c"])
    vectors = torch.from_numpy(np.stack(stored))  # type: ignore[arg-type]
    save_file({"image_embeds": vectors}, path, metadata={"names": names, "checkpoint": fingerprint})
    assert score_file(path, config, TagOptions()) == 0
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": content | {"image_mean": [0.4] * 3}})
    )
    with pytest.raises(InvalidRequest, match="different checkpoints cannot be compared"):
        score_file(path, config, TagOptions())


def config_of(folder: Path) -> ServiceConfig:
    return parse_config(
        {
            "labels": ["cat"],
            "plugins": {"siglip": {"model": str(folder), "device": "cpu", "dtype": "float32"}},
        }
    )
