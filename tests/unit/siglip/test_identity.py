"""A checkpoint's fingerprint follows from what its files hold."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.identity import SMALL_FILES, checkpoint_fingerprint, encoder_fingerprint
from serve_app.siglip.safetensors_files import read_header


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny("siglip2"), tmp_path / "c")


def test_a_moved_folder_keeps_it_and_a_name_or_revision_says_nothing(
    folder: Path, tmp_path: Path
) -> None:
    """Embeddings of the same weights are comparable wherever they lie."""
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert checkpoint_fingerprint(read_checkpoint(folder)) == checkpoint_fingerprint(
        read_checkpoint(moved, "other/name", "main")
    )


def test_every_tensor_counts(folder: Path) -> None:
    """One byte in the middle of any tensor of the file, the two scalars of the head among them."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = read_header(path)
    before = checkpoint_fingerprint(read_checkpoint(folder))
    for begin, end in (offsets for _, _, offsets in header.tensors.values()):
        changed = bytearray(data)
        changed[header.start + (begin + end) // 2] ^= 1
        path.write_bytes(changed)
        assert checkpoint_fingerprint(read_checkpoint(folder)) != before


def test_a_missing_shard_is_told(folder: Path) -> None:
    """Named by an index and not there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {
            "logit_bias": "model-00001-of-00002.safetensors",
            "logit_scale": "model-00002-of-00002.safetensors",
        }
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="model-00002-of-00002"):
        checkpoint_fingerprint(read_checkpoint(folder))


@pytest.mark.parametrize("name", SMALL_FILES)
def test_every_file_that_changes_embeddings_changes_it(
    tiny: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """For every file that counts, one more byte or the file itself changes the fingerprint."""
    folder = shutil.copytree(
        tiny("siglip" if name == "spiece.model" else "siglip2"), tmp_path / "c"
    )
    before = checkpoint_fingerprint(read_checkpoint(folder))
    checkpoint = read_checkpoint(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert checkpoint_fingerprint(checkpoint) != before


def test_the_mean_of_pixels_changes_it(folder: Path) -> None:
    """In the file that transformers 5 writes, too."""
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    fingerprints = set()
    for mean in (0.5, 0.4):
        (folder / "processor_config.json").write_text(
            json.dumps({"image_processor": content | {"image_mean": mean}})
        )
        fingerprints.add(checkpoint_fingerprint(read_checkpoint(folder)))
    assert len(fingerprints) == 2


def test_a_few_rows_of_the_token_embedding_change_it(folder: Path) -> None:
    """Nine rows in the middle of a tensor: a part of it as large as a sample would be missed."""
    path = folder / "model.safetensors"
    before = checkpoint_fingerprint(read_checkpoint(folder))
    tensors = load_file(path)
    tensors["text_model.embeddings.token_embedding.weight"][101:110] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert checkpoint_fingerprint(read_checkpoint(folder)) != before


def test_every_byte_of_the_weights_counts(folder: Path) -> None:
    """Fifty places in the file, drawn at random."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    fingerprints = {checkpoint_fingerprint(read_checkpoint(folder))}
    start = read_header(path).start
    places = random.Random(0).sample(range(start, len(data)), 50)
    for place in places:
        data[place] ^= 1
        path.write_bytes(data)
        fingerprints.add(checkpoint_fingerprint(read_checkpoint(folder)))
        data[place] ^= 1
    assert len(fingerprints) == 51


def test_shards_beside_a_whole_file_are_not_read(folder: Path) -> None:
    """As transformers does not load them: the index of an older version is left over."""
    before = checkpoint_fingerprint(read_checkpoint(folder))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"logit_bias": "gone.safetensors"}})
    )
    assert checkpoint_fingerprint(read_checkpoint(folder)) == before


def test_dtype_and_quantisation_are_part_of_what_text_embeddings_are(folder: Path) -> None:
    """Rows of a quantised tower are not mixed with those of an exact one."""
    checkpoint = read_checkpoint(folder)
    kinds = {
        encoder_fingerprint(checkpoint_fingerprint(checkpoint), dtype, bits)
        for dtype in ("float32", "bfloat16")
        for bits in ("none", "4bit")
    }
    assert len(kinds) == 4
