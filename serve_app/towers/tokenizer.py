"""Tokenizes prompts and pads them on the right to the checkpoint's own context length.

The family determines the tokenizer class. `AutoTokenizer` would use `GemmaTokenizer`, which the
hub names for fixed-resolution SigLIP 2. Only `input_ids` are returned, because the towers were
trained without an attention mask and pool the last position, which is normally padding.
"""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase, Siglip2Tokenizer, SiglipTokenizer

from serve_app.errors import ConfigError, InvalidRequest
from serve_app.siglip.checkpoints import Checkpoint, Family
from serve_app.siglip.text import canonicalize_text

TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MAX_TOKENIZER_BYTES = 128 * 2**20
"""Maximum size of a tokenizer file. The largest is SigLIP 2's tokenizer with 34 MB."""
PADDING_IDS = {Family.SIGLIP: 1, Family.SIGLIP2: 0, Family.NAFLEX: 0}
"""The token that pads texts in training: `</s>` or `<pad>`.

It matters, because the text tower pools the last position, which is normally padding. Source:
big_vision, which has `pad_value=1` with SigLIP's SentencePiece models, and 0 with Gemma's
tokenizer.
"""
DIGEST_BYTES = 16
MIN_VOCABULARY_SHARE = 0.9
"""Minimum vocabulary of the tokenizer, as a fraction of the rows of the token embedding.

A tokenizer without its files knows five tokens.
"""


class SiglipTextInputs:
    """Turns finished prompts into `input_ids`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = _load(checkpoint)
        # Several threads share the tokenizer, and transformers stores padding and truncation in it.
        self._lock = threading.Lock()

    def canonicalize(self, prompt: str) -> str:
        """Return the canonical text of a prompt, which the tokenizer gets."""
        return canonicalize_text(prompt, self._checkpoint.strips_punctuation)

    def input_ids(self, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return (n, L) int64 token ids, where L is the checkpoint's context length.

        Longer prompts are truncated; `check_whole` refuses them.
        """
        texts = [self.canonicalize(prompt) for prompt in prompts]
        with self._lock:
            encoded = self._tokenizer(
                texts,
                padding="max_length",
                max_length=self._checkpoint.context_length,
                truncation=True,
                return_attention_mask=False,
                return_tensors="np",
            )
        return np.asarray(encoded["input_ids"], np.int64)

    def digests(self, prompts: Sequence[str]) -> list[bytes]:
        """Return a digest of each prompt's token ids without truncation.

        Prompts with equal digests are the same text to the model.
        """
        texts = [self.canonicalize(prompt) for prompt in prompts]
        rows = [np.asarray(ids, np.int64).tobytes() for ids in self._whole_ids(texts)]
        return [hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in rows]

    def check_whole(self, prompts: Sequence[str]) -> None:
        """Raise `InvalidRequest` for a prompt that the text tower would read only in part."""
        for prompt, tokens in self.overlong(prompts):
            raise InvalidRequest(self.overlong_message(prompt, tokens))

    def overlong_message(self, prompt: str, tokens: int) -> str:
        """Return the error message for a prompt with too many tokens."""
        limit = self._checkpoint.context_length
        return (
            f"{prompt!r} has {tokens} tokens, but this checkpoint reads {limit}; shorten it, or "
            "describe the label with a shorter prompt."
        )

    def overlong(self, prompts: Sequence[str]) -> list[tuple[str, int]]:
        """Return the prompts that have more tokens than the checkpoint reads, with their number.

        SigLIP's tokenizer normalizes text by NFKC, which can expand one character to 18. So only
        ASCII text with few characters is known to be short without tokenization.
        """
        limit = self._checkpoint.context_length
        texts = [self.canonicalize(prompt) for prompt in prompts]
        # A token of ASCII text has at least one character; the beginning and the end of the text
        # may add one token each.
        suspects = [
            i for i, text in enumerate(texts) if not text.isascii() or len(text) + 2 > limit
        ]
        lengths = [len(row) for row in self._whole_ids([texts[i] for i in suspects])]
        return [
            (prompts[i], length)
            for i, length in zip(suspects, lengths, strict=True)
            if length > limit
        ]

    def _whole_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of canonical texts without truncation and padding."""
        if not texts:
            return []
        with self._lock:
            encoded = self._tokenizer(texts, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def _load(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    for name in TOKENIZER_FILES:
        path = checkpoint.folder / name
        if path.is_file() and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ConfigError(
                f"{path} has more than {MAX_TOKENIZER_BYTES:,} bytes, which is too large for a "
                "tokenizer."
            )

    kind = SiglipTokenizer if checkpoint.family is Family.SIGLIP else Siglip2Tokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            checkpoint.folder, padding_side="right"
        )
    except Exception as error:  # tokenizers and sentencepiece raise any kind of exception
        raise ConfigError(
            f"the tokenizer files in {checkpoint.folder} cannot be read: {error}"
        ) from error

    _check_padding(tokenizer, checkpoint)
    known = len(tokenizer)
    if not MIN_VOCABULARY_SHARE * checkpoint.vocab_size <= known <= checkpoint.vocab_size:
        raise ConfigError(
            f"the tokenizer in {checkpoint.folder} knows {known:,} tokens, but vocab_size in "
            f"config.json is {checkpoint.vocab_size:,}; its files are missing or belong to another "
            "checkpoint."
        )
    return tokenizer


def _check_padding(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> None:
    """Refuse tokenizer settings that give other token ids than in training."""
    trained = PADDING_IDS[checkpoint.family]
    if tokenizer.pad_token_id != trained:
        raise ConfigError(
            f"the tokenizer in {checkpoint.folder} pads texts with {tokenizer.pad_token!r}, token "
            f"{tokenizer.pad_token_id}, but the model was trained with token {trained}; fix "
            "pad_token in tokenizer_config.json and special_tokens_map.json."
        )
    if (getattr(tokenizer, "sp_model_kwargs", None) or {}).get("enable_sampling"):
        raise ConfigError(
            f"the tokenizer in {checkpoint.folder} samples tokens at random; remove "
            "enable_sampling from sp_model_kwargs in tokenizer_config.json."
        )
