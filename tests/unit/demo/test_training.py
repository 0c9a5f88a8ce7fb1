"""The training of the demo checkpoint: a run of two steps writes a checkpoint that works."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.precision import Precision
from serve_app.towers.self_check import REFERENCE_FILE
from serve_app.towers.tower import TextTower
from tools.demo_training import train
from tools.demo_training.release import SAMPLES


def test_a_short_run_writes_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps on a few scenes: weights, tokenizer, card, samples and reference vectors."""
    monkeypatch.setattr(train, "EVALUATION_SCENES", 16)
    folder = tmp_path / "checkpoint"
    measures = train.train(train.Schedule(steps=2, train_scenes=32, batch_size=8), folder)

    assert measures == json.loads((folder / "training.json").read_text())["measures"]
    assert "python -m tools.demo_training" in (folder / "README.md").read_text()
    samples = {path.stem for path in (tmp_path / "samples").glob("*.jpg")}
    assert samples == {scene.name for scene in SAMPLES}

    prompts = (folder / "reference_prompts.txt").read_text().splitlines()
    tower = TextTower(
        read_checkpoint(folder), Precision(device="cpu", dtype="float32", attention="sdpa")
    )
    stored = load_file(folder / REFERENCE_FILE)["text_embeds"]
    np.testing.assert_allclose(tower.encode(prompts), stored, atol=1e-5)
