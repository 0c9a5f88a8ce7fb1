"""How text is written before it is tokenised.

transformers lower-cases for SigLIP and for NaFlex but not for fixed-resolution SigLIP 2, and its
SigLIP tokenizer deletes `_` and `-` so that `red_car` becomes `redcar`. So text is canonicalised
here, before any tokenizer sees it, and the finished prompt rather than the label alone, so that a
template's capital letter is lowered too.

Punctuation, for SigLIP (v1): the published training pipeline only lower-cases text (`tokenize` in
big_vision's `pp/ops_text.py`), while its evaluations (`canonicalize_text` in
`prompt_engineering.py`) and transformers' `SiglipTokenizer` also delete ASCII punctuation. Text is
written here as the evaluations write it, because published results and the scores of other software
are made that way. The one difference from transformers is that `_`, as in the evaluations, and `-`
become spaces: deleted, they make `blackandwhite` of `black-and-white`. SigLIP 2 keeps punctuation,
as transformers' `Siglip2Tokenizer` does.

Not here: tokenising (`tokenizer.py`), templates (`serve_app/tagging/prompts.py`).
"""

import string
import unicodedata

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonicalize_text(text: str, strip_punctuation: bool) -> str:
    """Return text as the towers read it: NFC, lower case, single spaces, `_` as a space.

    Args:
        text: A finished prompt.
        strip_punctuation: Also turn `-` into a space and drop other ASCII punctuation, for SigLIP
            (v1). Source: big_vision `evaluators/proj/image_text/prompt_engineering.py`.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("_", " ")
    if strip_punctuation:
        text = text.replace("-", " ").translate(_PUNCTUATION)
    return " ".join(text.split())
