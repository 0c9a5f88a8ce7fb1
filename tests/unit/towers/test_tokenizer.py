"""Token ids equal those of transformers' tokenizers, except for their silent traps."""

import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, Siglip2Tokenizer, SiglipTokenizer

from serve_app.errors import ConfigError, InvalidRequest
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.towers.tokenizer import SiglipTextInputs

CONTEXT = {"siglip": 16, "siglip2": 64, "siglip2-naflex": 64}
PAD = {"siglip": 1, "siglip2": 0, "siglip2-naflex": 0}
INPUTS: dict[Path, SiglipTextInputs] = {}
REFERENCES: dict[Path, PreTrainedTokenizerBase] = {}


def text_inputs(folder: Path) -> SiglipTextInputs:
    return SiglipTextInputs(read_checkpoint(folder))


def test_ids_are_those_of_the_right_tokenizer(checkpoint_folder: Path, family: str) -> None:
    """Trap 1: SigLIP 2 is tokenized by Siglip2Tokenizer, though its files name GemmaTokenizer."""
    kind = SiglipTokenizer if family == "siglip" else Siglip2Tokenizer
    reference = kind.from_pretrained(checkpoint_folder, padding_side="right")
    prompts = ["this is a photo of a cat.", "red bicycle"]
    expected = reference(
        prompts,
        padding="max_length",
        max_length=CONTEXT[family],
        truncation=True,
        return_tensors="np",
    )["input_ids"]
    np.testing.assert_array_equal(text_inputs(checkpoint_folder).input_ids(prompts), expected)


def test_case_of_template_and_label_does_not_matter(checkpoint_folder: Path) -> None:
    """Traps 1 and 2: a capital letter in the template or the label gives the same ids."""
    inputs = text_inputs(checkpoint_folder)
    upper, lower = inputs.input_ids(
        ["This is a photo of Red Bicycle.", "this is a photo of red bicycle."]
    )
    np.testing.assert_array_equal(upper, lower)


def test_underscores_and_hyphens_separate_words(tiny: Callable[[str], Path]) -> None:
    """Trap 11: `red_bicycle` is `red bicycle`, and for SigLIP `t-shirt` is `t shirt`."""
    for family in ("siglip", "siglip2"):
        glued, apart = text_inputs(tiny(family)).input_ids(["red_bicycle", "red bicycle"])
        np.testing.assert_array_equal(glued, apart)
    hyphen, space = text_inputs(tiny("siglip")).input_ids(["t-shirt", "t shirt"])
    np.testing.assert_array_equal(hyphen, space)


def test_ids_are_padded_right_to_the_context_length_of_the_checkpoint(
    checkpoint_folder: Path, family: str
) -> None:
    """Trap 4: ids have the checkpoint's own length (16 for this SigLIP, else 64), padded right."""
    ids = text_inputs(checkpoint_folder).input_ids(["cat"])
    assert ids.shape == (1, CONTEXT[family])
    assert ids.dtype == np.int64
    assert (ids[0, -4:] == PAD[family]).all()
    assert ids[0, 0] != PAD[family]


def test_long_text_is_cut(checkpoint_folder: Path, family: str) -> None:
    """More words than the context holds are cut, not refused and not longer."""
    assert text_inputs(checkpoint_folder).input_ids(["cat " * 200]).shape == (1, CONTEXT[family])


def test_what_would_be_cut_is_told(checkpoint_folder: Path, family: str) -> None:
    """Only prompts that the tower would truncate are overlong; their token count is right."""
    inputs = text_inputs(checkpoint_folder)
    long = "cat " * 200
    ((prompt, tokens),) = inputs.overlong(["a photo of a cat", long])
    assert (prompt, tokens > CONTEXT[family]) == (long, True)
    words = next(n for n in range(1, 200) if inputs.overlong(["dog " * n])) - 1
    assert (inputs.input_ids(["dog " * words]) != inputs.input_ids(["dog " * (words - 1)])).any()
    inputs.check_whole(["dog " * words])
    with pytest.raises(InvalidRequest, match=f"reads {CONTEXT[family]}"):
        inputs.check_whole(["dog " * (words + 1)])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.text("aé ﷺ㎏½İΣ犬🐈-_.\u0958\ufb2c ", max_size=70))
def test_every_prompt_that_would_be_cut_is_found(
    checkpoint_folder: Path, family: str, text: str
) -> None:
    """Whatever normalization does, the count is that of transformers' tokenizer."""
    kind = SiglipTokenizer if family == "siglip" else Siglip2Tokenizer
    inputs = INPUTS.setdefault(checkpoint_folder, text_inputs(checkpoint_folder))
    reference = REFERENCES.setdefault(checkpoint_folder, kind.from_pretrained(checkpoint_folder))
    tokens = len(reference(inputs.canonicalize(text))["input_ids"])
    assert inputs.overlong([text]) == ([(text, tokens)] if tokens > CONTEXT[family] else [])


def test_a_ligature_counts_as_what_it_becomes(tiny: Callable[[str], Path]) -> None:
    """SigLIP's tokenizer makes 18 characters of `ﷺ`, so a short text of them is cut."""
    inputs = text_inputs(tiny("siglip"))
    assert inputs.overlong(["ﷺ" * 12])[0][1] > 16
    assert inputs.overlong(["cat"]) == []


def test_digests_are_equal_where_ids_are(checkpoint_folder: Path) -> None:
    """One digest for each prompt, in order."""
    inputs = text_inputs(checkpoint_folder)
    prompts = ["a cat", "A  Cat", "a dog", "a_cat"]
    first, second, other, third = inputs.digests(prompts)
    assert first == second == third != other


def test_tokenizer_without_settings_still_gives_ids_only(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Trap 3: only ids are returned; SiglipTokenizer without its configuration adds a mask."""
    folder = shutil.copytree(tiny("siglip"), tmp_path / "c")
    (folder / "tokenizer_config.json").unlink()
    ids = text_inputs(folder).input_ids(["a photo of a cat"])
    np.testing.assert_array_equal(ids, text_inputs(tiny("siglip")).input_ids(["a photo of a cat"]))


def test_foreign_tokenizer_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Trap 5: loading stops if the vocabulary is not the checkpoint's own."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 256_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="256,000"):
        text_inputs(folder)


def test_damaged_tokenizer_file_is_named(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A tokenizer.json that is not JSON is an error that names the folder, not a traceback."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="tokenizer"):
        text_inputs(folder)


def test_what_the_tokenizers_need_is_installed_with_the_model() -> None:
    """Trap 12: the extra that runs the model brings SigLIP's sentencepiece and protobuf."""
    names = {
        re.split(r"[\s;<>=\[]", need)[0]
        for need in requires("siglip-serve") or []
        if re.search(r"extra == ['\"]local['\"]", need)
    }
    assert {"sentencepiece", "protobuf", "tokenizers"} <= names


def changed(folder: Path, file: str, content: dict[str, object]) -> None:
    """Change keys of a JSON file, or write it."""
    path = folder / file
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | content))


@pytest.mark.parametrize(
    ("file", "token"),
    [
        ("tokenizer_config.json", "<unk>"),
        ("tokenizer_config.json", "nothing"),
        ("tokenizer_config.json", None),
        ("special_tokens_map.json", "<unk>"),
        ("special_tokens_map.json", "nothing"),
    ],
)
def test_other_padding_than_in_training_is_refused(
    checkpoint_folder: Path, tmp_path: Path, file: str, token: str | None
) -> None:
    """Either file may name the padding token, which the text tower pools at the last position."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "c")
    changed(folder, file, {"pad_token": token})
    with pytest.raises(ConfigError, match=r"pads texts with .*trained with token"):
        text_inputs(folder)


def test_tokens_drawn_at_random_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """SentencePiece can sample how words are cut, which is for training."""
    folder = shutil.copytree(tiny("siglip"), tmp_path / "c")
    changed(
        folder,
        "tokenizer_config.json",
        {"sp_model_kwargs": {"enable_sampling": True, "alpha": 0.1, "nbest_size": -1}},
    )
    with pytest.raises(ConfigError, match="enable_sampling"):
        text_inputs(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"cat": 7}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9": {"content": "cat", "special": False}}},
        ),
        ("special_tokens_map.json", {"additional_special_tokens": ["dog"]}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("tokenizer_config.json", {"padding_side": "left"}),
        ("tokenizer_config.json", {"model_max_length": 5}),
    ],
    ids=str,
)
def test_ids_follow_all_files_as_in_transformers(
    checkpoint_folder: Path, tmp_path: Path, family: str, file: str, content: dict
) -> None:
    """With added tokens and settings, ids equal those of the class, or loading fails."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "c")
    changed(folder, file, content)
    kind = SiglipTokenizer if family == "siglip" else Siglip2Tokenizer
    reference = kind.from_pretrained(folder, padding_side="right")
    prompts = ["this is a photo of a cat", "dog dog"]
    try:
        ids = text_inputs(folder).input_ids(prompts)
    except ConfigError:
        assert len(reference) > read_checkpoint(folder).vocab_size
        return
    expected = reference(
        prompts,
        padding="max_length",
        max_length=CONTEXT[family],
        truncation=True,
        return_tensors="np",
    )["input_ids"]
    np.testing.assert_array_equal(ids, expected)
