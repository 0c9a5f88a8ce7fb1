"""Cleans text before it is tokenized.

transformers lower-cases text for SigLIP and NaFlex, but not for fixed-resolution SigLIP 2. Its
SigLIP tokenizer deletes `_` and `-`, so that `red_car` becomes `redcar`. Text is therefore
canonicalized before any tokenizer sees it. This applies to the finished prompt instead of the
label, so that capital letters of a template are lower-cased too.

Punctuation, for SigLIP (v1): The published training pipeline only lower-cases text (`tokenize` in
big_vision's `pp/ops_text.py`). Its evaluations (`canonicalize_text` in `prompt_engineering.py`) and
transformers' `SiglipTokenizer` also delete ASCII punctuation. This module follows the evaluations,
because published results and other software do. It differs from transformers in one respect: `_`,
as in the evaluations, and `-` become spaces. If they were deleted, `black-and-white` would become
`blackandwhite`. SigLIP 2 keeps punctuation, as in transformers' `Siglip2Tokenizer`.

Not here: tokenization (`towers/tokenizer.py`), templates (`tagging/prompts.py`).
"""

import string
import unicodedata

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonicalize_text(text: str, strip_punctuation: bool) -> str:
    """Return canonical text: NFC, lower case, single spaces, and a space for each `_`.

    Args:
        text: A finished prompt.
        strip_punctuation: Whether to replace `-` by a space and to delete other ASCII punctuation,
            for SigLIP (v1). Source: big_vision `evaluators/proj/image_text/prompt_engineering.py`.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("_", " ")
    if strip_punctuation:
        text = text.replace("-", " ").translate(_PUNCTUATION)
    return " ".join(text.split())
