"""Token ids as the text towers were trained on them: right-padded to the checkpoint's own context
length.

The tokenizer class is chosen by family and not by `AutoTokenizer`, which trusts the hub's
`GemmaTokenizer` for fixed-resolution SigLIP 2. Only `input_ids` are returned: the towers were
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
"""Bytes of one file. The largest is the tokenizer of SigLIP 2 with 34 MB."""
PADDING_IDS = {Family.SIGLIP: 1, Family.SIGLIP2: 0, Family.NAFLEX: 0}
"""Token that texts were padded with in training: `</s>` or `<pad>`. The text tower pools the last
position, which is normally padding. Source: big_vision, `pad_value=1` with SigLIP's SentencePiece
models, and 0 with Gemma's tokenizer."""
DIGEST_BYTES = 16
MIN_VOCABULARY_SHARE = 0.9
"""Least part of the token embedding's rows that the tokenizer must know; a tokenizer without its
files knows five."""


class SiglipTextInputs:
    """Turns finished prompts into `input_ids`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = _load(checkpoint)
        # transformers keeps padding and truncation as a state of the tokenizer, which several
        # threads call here
        self._lock = threading.Lock()

    def canonicalize(self, prompt: str) -> str:
        """Return the prompt as the tokenizer sees it."""
        return canonicalize_text(prompt, self._checkpoint.strips_punctuation)

    def input_ids(self, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return (n, L) int64 token ids, L the checkpoint's context length; longer prompts are cut
        (see `check_whole`).
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
        """Return a digest of the token ids of each prompt, all of them: equal ones are the same
        text to the model.
        """
        return [
            hashlib.blake2b(np.asarray(row, np.int64).tobytes(), digest_size=DIGEST_BYTES).digest()
            for row in self._whole_ids([self.canonicalize(prompt) for prompt in prompts])
        ]

    def check_whole(self, prompts: Sequence[str]) -> None:
        """Raise `InvalidRequest` for prompts of which the text tower would not read the end."""
        for prompt, tokens in self.overlong(prompts):
            raise InvalidRequest(self.overlong_message(prompt, tokens))

    def overlong_message(self, prompt: str, tokens: int) -> str:
        """Return what is wrong with a prompt that has too many tokens, and what to do."""
        limit = self._checkpoint.context_length
        return f"{prompt!r} has {tokens} tokens and this checkpoint reads {limit}; say it shorter with a prompt."

    def overlong(self, prompts: Sequence[str]) -> list[tuple[str, int]]:
        """Return the prompts that have more tokens than the checkpoint reads, and how many.

        The tokens counted are those that the model would get. SigLIP's tokenizer normalises text by
        NFKC, which can make 18 characters of one, so only ASCII is short if it has few characters.
        """
        limit = self._checkpoint.context_length
        texts = [self.canonicalize(prompt) for prompt in prompts]
        # a token of ASCII stands for a character at least; the text's beginning and end take one
        # each
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
        """Return the token ids of canonical texts, neither cut nor padded."""
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
                f"{path} has more than {MAX_TOKENIZER_BYTES:,} bytes, which is too large for a tokenizer."
            )
    kind = SiglipTokenizer if checkpoint.family is Family.SIGLIP else Siglip2Tokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            checkpoint.folder, padding_side="right"
        )
    except Exception as error:  # tokenizers and sentencepiece raise their own, and bare ones
        raise ConfigError(
            f"the tokenizer files in {checkpoint.folder} cannot be read: {error}"
        ) from error
    _check_padding(tokenizer, checkpoint)
    known = len(tokenizer)
    if not MIN_VOCABULARY_SHARE * checkpoint.vocab_size <= known <= checkpoint.vocab_size:
        raise ConfigError(
            f"the tokenizer in {checkpoint.folder} knows {known:,} tokens but config.json says vocab_size "
            f"{checkpoint.vocab_size:,}; its files are missing or belong to another checkpoint."
        )
    return tokenizer


def _check_padding(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> None:
    """Refuse settings of a tokenizer that make every text another one than the tower was trained
    on.
    """
    trained = PADDING_IDS[checkpoint.family]
    if tokenizer.pad_token_id != trained:
        raise ConfigError(
            f"the tokenizer in {checkpoint.folder} pads texts with {tokenizer.pad_token!r}, token {tokenizer.pad_token_id}, but the "
            f"model was trained with token {trained}; correct pad_token in tokenizer_config.json and special_tokens_map.json."
        )
    if (getattr(tokenizer, "sp_model_kwargs", None) or {}).get("enable_sampling"):
        raise ConfigError(
            f"the tokenizer in {checkpoint.folder} draws tokens at random; remove enable_sampling from sp_model_kwargs "
            "in tokenizer_config.json."
        )
