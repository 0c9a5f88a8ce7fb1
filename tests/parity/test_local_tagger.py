"""`LocalTagger` against transformers' own model classes and, where it is right, the Hugging Face
pipeline.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, Siglip2Tokenizer, SiglipTokenizer, pipeline
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from serve_app.config.service import parse_config
from serve_app.errors import InvalidRequest
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.tagging.options import TagOptions, tag_options
from tests.conftest import encoded, random_picture
from tests.tiny_checkpoints import LABELS

TOLERANCE = 1e-4
PICTURES = [
    encoded(random_picture(width, height, seed))
    for seed, (width, height) in enumerate([(120, 200), (300, 90), (64, 64)])
]
TEMPLATE = "a photo of {label}"  # the usual one and most labels are longer than a context of 16


def make_tagger(folder: Path, **plugin: object) -> LocalTagger:
    block = {
        "model": str(folder),
        "confidence_threshold": 0.0,
        "max_tags": 100,
        "max_num_patches": 64,
        "dtype": "float32",
    } | plugin
    return LocalTagger(
        parse_config(
            {"labels": list(LABELS), "prompt_templates": [TEMPLATE], "plugins": {"siglip": block}}
        )
    )


def reference_logits(
    folder: Path, pictures: list[bytes], prompts: list[str], max_num_patches: int = 64
) -> np.ndarray:
    """Return logits (B, T) of the whole model of transformers, its image processor, and prompts
    cleaned by hand.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    naflex = model.config.model_type == "siglip2"
    kind = SiglipTokenizer if (folder / "spiece.model").exists() else Siglip2Tokenizer
    tokenizer = kind.from_pretrained(folder, padding_side="right")
    length = model.config.text_config.max_position_embeddings
    ids = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )["input_ids"]
    processor = (Siglip2ImageProcessorPil if naflex else SiglipImageProcessorPil).from_pretrained(
        folder
    )
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    inputs = processor(
        images, return_tensors="pt", **({"max_num_patches": max_num_patches} if naflex else {})
    )
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits_per_image.numpy()


def tagged_logits(
    tagger: LocalTagger, pictures: list[bytes], options: TagOptions = TagOptions()
) -> np.ndarray:
    """Return logits (B, T) in the order of the labels."""
    labels = options.vocabulary.labels or LABELS
    images = tagger.tag_images(pictures, options)
    tables = [{tag.label: tag.logit for tag in image.tags} for image in images]
    return np.array([[table[label] for label in labels] for table in tables])


def clean(label: str, family: str) -> str:
    """Say a label as the facts say it must be said, by hand for the labels of these tests."""
    text = label.lower().replace("_", " ")
    return text.replace("-", " ") if family == "siglip" else text


def test_logits_equal_the_whole_model(checkpoint_folder: Path, family: str) -> None:
    """All three families: split towers, our preprocessing and head agree with AutoModel to 1e-4 in
    logit.
    """
    prompts = [TEMPLATE.format(label=clean(label, family)) for label in LABELS]
    expected = reference_logits(checkpoint_folder, PICTURES, prompts)
    np.testing.assert_allclose(
        tagged_logits(make_tagger(checkpoint_folder), PICTURES), expected, atol=TOLERANCE
    )


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batch_size_changes_nothing(checkpoint_folder: Path, batch_size: int) -> None:
    """One at a time or all at once: the same logits."""
    one = tagged_logits(make_tagger(checkpoint_folder, batch_size=batch_size), PICTURES)
    np.testing.assert_allclose(
        one, tagged_logits(make_tagger(checkpoint_folder), PICTURES), atol=TOLERANCE
    )


def test_ensemble_is_the_mean_of_its_templates_logits(checkpoint_folder: Path, family: str) -> None:
    """Averaging un-normalised embeddings averages the logits, which keeps thresholds where they
    were.
    """
    templates = ("a photo of {label}", "{label}", "a picture with {label} in it")
    tagger = make_tagger(checkpoint_folder)
    expected = np.mean(
        [
            reference_logits(
                checkpoint_folder,
                PICTURES,
                [t.format(label=clean(label, family)) for label in LABELS],
            )
            for t in templates
        ],
        axis=0,
    )
    np.testing.assert_allclose(
        tagged_logits(tagger, PICTURES, tag_options(prompt_templates=templates)),
        expected,
        atol=TOLERANCE,
    )


def hugging_face_scores(folder: Path, labels: list[str], tmp_path: Path) -> dict[str, float]:
    """Return what the pipeline says of the first picture; it reads max_num_patches from the
    processor's file.
    """
    folder = shutil.copytree(folder, tmp_path / "pipeline")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    if "max_num_patches" in settings:
        (folder / "preprocessor_config.json").write_text(
            json.dumps(settings | {"max_num_patches": 64})
        )
    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    image = Image.open(io.BytesIO(PICTURES[0])).convert("RGB")
    return {
        r["label"]: r["score"]
        for r in classify(
            image, candidate_labels=labels, hypothesis_template="this is a photo of {}."
        )
    }


@pytest.mark.parametrize("name", ["siglip2", "siglip2-naflex"])
@pytest.mark.filterwarnings("ignore")
def test_pipeline_agrees_on_lower_case_labels(
    tiny: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Where the pipeline is right (lower-case labels without underscores, context 64), scores are
    equal.
    """
    labels = ["cat", "red bicycle", "mountain lake"]
    expected = hugging_face_scores(tiny(name), labels, tmp_path)
    options = tag_options(labels=tuple(labels), prompt_templates=("this is a photo of {}.",))
    (image,) = make_tagger(tiny(name)).tag_images(PICTURES[:1], options)
    for tag in image.tags:
        assert tag.confidence == pytest.approx(expected[tag.label], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_pipeline_is_wrong_where_the_documentation_says(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Trap 1: for fixed-resolution SigLIP 2 the pipeline scores `Cat` and `cat` differently; we
    score them the same.
    """
    theirs = hugging_face_scores(tiny("siglip2"), ["Cat", "cat"], tmp_path)
    assert theirs["Cat"] != pytest.approx(theirs["cat"], rel=1e-3)
    logits = tagged_logits(
        make_tagger(tiny("siglip2")), PICTURES[:1], tag_options(labels=("Cat", "cat"))
    )
    assert logits[0, 0] == pytest.approx(logits[0, 1], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_pipeline_crashes_on_a_context_of_16(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Trap 4: the pipeline pads to 64 whatever the checkpoint says; SigLIP so400m-patch14-224 has
    16.
    """
    with pytest.raises(ValueError, match="64"):
        hugging_face_scores(tiny("siglip"), ["cat"], tmp_path)


def test_a_broken_picture_fails_alone(checkpoint_folder: Path) -> None:
    """Three of six images are tagged, two are damaged and one could not be read, in order."""
    unread = InvalidRequest("An image is empty.")
    images = [PICTURES[0], b"not an image", PICTURES[1], unread, PICTURES[2][:100], PICTURES[2]]
    tagger = make_tagger(checkpoint_folder)
    tagged = tagger.tag_images(images)
    assert [image.error is None for image in tagged] == [True, False, True, False, False, True]
    assert tagged[3].error is unread
    assert [image.num_views for image in tagged] == [1, 0, 1, 0, 0, 1]
    embeds = tagger.encode_images(images)
    assert [isinstance(embed, np.ndarray) for embed in embeds] == [
        image.error is None for image in tagged
    ]
    assert embeds[3] is unread


def test_spellings_mean_what_the_family_was_trained_on(
    checkpoint_folder: Path, family: str
) -> None:
    """`_`, case and composed accents never matter; `-` and punctuation do not for SigLIP and do for
    SigLIP 2. Labels of every alphabet come back exactly as they were sent.
    """
    pairs = [
        ("Snow_Leopard", "snow leopard"),
        ("CAFE\u0301", "caf\u00e9"),
        ("\u041a\u041e\u0428\u041a\u0410", "\u043a\u043e\u0448\u043a\u0430"),
    ]
    cut = [("t-shirt", "t shirt"), ("cat!", "cat")]
    labels = (*(label for pair in (*pairs, *cut) for label in pair), "\u72ac")
    tagger = make_tagger(checkpoint_folder)
    (image,) = tagger.tag_images(
        PICTURES[:1], tag_options(labels=labels, prompt_templates=("{label}",))
    )
    logits = {tag.label: tag.logit for tag in image.tags}
    assert set(logits) == set(labels)
    for one, other in pairs:
        assert logits[one] == pytest.approx(logits[other], abs=1e-5)
    for one, other in cut:
        assert (logits[one] == pytest.approx(logits[other], abs=1e-5)) == (family == "siglip")
