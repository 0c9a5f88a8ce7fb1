"""Canonical text, by hand-written pairs."""

import pytest

from serve_app.siglip.text import canonicalize_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This is a photo of Red_Car.", "this is a photo of red car"),
        ("t-shirt", "t shirt"),
        ("black-and-white", "black and white"),
        ("  many   spaces\t", "many spaces"),
        ("crane (bird)", "crane bird"),
        ("Über", "über"),
        ("cafe\u0301", "caf\u00e9"),
        ("猫", "猫"),
    ],
)
def test_siglip_text_loses_case_and_punctuation_but_no_word_boundary(
    text: str, expected: str
) -> None:
    """Trap 11: `red_car` and `t-shirt` stay two words."""
    assert canonicalize_text(text, strip_punctuation=True) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This is a photo of Red_Car.", "this is a photo of red car."),
        ("T-Shirt", "t-shirt"),
        ("Crane (bird)", "crane (bird)"),
    ],
)
def test_siglip2_text_keeps_punctuation(text: str, expected: str) -> None:
    """Traps 1 and 2: the finished prompt is lower-cased, its punctuation stays."""
    assert canonicalize_text(text, strip_punctuation=False) == expected
