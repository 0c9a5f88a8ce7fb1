"""Token ids as the text towers were trained on them: right-padded to the checkpoint's own context length.

The tokenizer class is chosen by family and not by `AutoTokenizer`, which trusts the hub's `GemmaTokenizer` for
fixed-resolution SigLIP 2. Only `input_ids` are returned: the towers were trained without an attention mask and pool
the last position, which is normally padding.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase, Siglip2Tokenizer, SiglipTokenizer

from serve_app.errors import ConfigError, InvalidRequest
from serve_app.siglip.checkpoints import Checkpoint, Family
from serve_app.siglip.text import canonicalize_text

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")
MAX_TOKENIZER_BYTES = 128 * 2**20
"""Bytes of one file. The largest is the tokenizer of SigLIP 2 with 34 MB."""
MIN_VOCABULARY_SHARE = 0.9
"""Least part of the token embedding's rows that the tokenizer must know; a tokenizer without its files knows five."""


class SiglipTextInputs:
    """Turns finished prompts into `input_ids`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = _load(checkpoint)

    def canonicalize(self, prompt: str) -> str:
        """Return the prompt as the tokenizer sees it."""
        return canonicalize_text(prompt, self._checkpoint.strips_punctuation)

    def input_ids(self, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return (n, L) int64 token ids, L the checkpoint's context length; longer prompts are cut (see `check_whole`)."""
        encoded = self._tokenizer(
            [self.canonicalize(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self._checkpoint.context_length,
            truncation=True,
            return_attention_mask=False,
            return_tensors="np",
        )
        return np.asarray(encoded["input_ids"], np.int64)

    def check_whole(self, prompts: Sequence[str]) -> None:
        """Raise `InvalidRequest` for prompts of which the text tower would not read the end."""
        for prompt, tokens in self.overlong(prompts):
            raise InvalidRequest(
                f"{prompt!r} has {tokens} tokens and this checkpoint reads {self._checkpoint.context_length}; say it shorter with a prompt."
            )

    def overlong(self, prompts: Sequence[str]) -> list[tuple[str, int]]:
        """Return the prompts that have more tokens than the checkpoint reads, and how many."""
        limit = self._checkpoint.context_length
        # a token stands for a byte at least, and the end of the text takes one
        suspects = [prompt for prompt in prompts if len(prompt.encode()) + 2 > limit]
        if not suspects:
            return []
        ids = self._tokenizer([self.canonicalize(prompt) for prompt in suspects], return_attention_mask=False, verbose=False)["input_ids"]
        return [(prompt, len(row)) for prompt, row in zip(suspects, ids, strict=True) if len(row) > limit]


def _load(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    for name in TOKENIZER_FILES:
        path = checkpoint.folder / name
        if path.is_file() and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ConfigError(f"{path} has more than {MAX_TOKENIZER_BYTES:,} bytes, which is too large for a tokenizer.")
    kind = SiglipTokenizer if checkpoint.family is Family.SIGLIP else Siglip2Tokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(checkpoint.folder, padding_side="right")
    except Exception as error:  # tokenizers and sentencepiece raise their own, and bare ones
        raise ConfigError(f"the tokenizer files in {checkpoint.folder} cannot be read: {error}") from error
    known = len(tokenizer)
    if not MIN_VOCABULARY_SHARE * checkpoint.vocab_size <= known <= checkpoint.vocab_size:
        raise ConfigError(
            f"the tokenizer in {checkpoint.folder} knows {known:,} tokens but config.json says vocab_size "
            f"{checkpoint.vocab_size:,}; its files are missing or belong to another checkpoint."
        )
    return tokenizer
