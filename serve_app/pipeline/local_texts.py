"""`LocalTexts`: prompts encoded by the text tower of this process.

The tower is loaded when a prompt has to be encoded and not before, so embeddings are scored against
stored banks without any tower.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.precision import Precision

if TYPE_CHECKING:
    from serve_app.towers.tokenizer import SiglipTextInputs
    from serve_app.towers.tower import TextTower


class LocalTexts:
    """The `Texts` of one process.

    Attributes:
        max_prompts: Prompts in one call; the tower cuts them into batches. One call encodes prompts
            of the same token ids once.
        prompts_encoded: How many prompts were encoded so far.
    """

    max_prompts = 20_000

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self._checkpoint = checkpoint
        self._precision = precision
        self.prompts_encoded = 0

    @cached_property
    def tower(self) -> "TextTower":
        """The text tower, loaded and checked."""
        # torch takes seconds to import, and stored banks need no tower
        from serve_app.towers.starting import load_text_tower

        return load_text_tower(self._checkpoint, self._precision)

    @property
    def text_inputs(self) -> "SiglipTextInputs":
        """The tokenizer: the tower's if there is one, else one of its own."""
        return self.tower.text_inputs if "tower" in self.__dict__ else self._own_text_inputs

    @cached_property
    def _own_text_inputs(self) -> "SiglipTextInputs":
        # transformers takes seconds to import, and stored banks need no tokenizer
        from serve_app.towers.tokenizer import SiglipTextInputs

        return SiglipTextInputs(self._checkpoint)

    async def encode(self, prompts: Sequence[str], refuse_cut: bool) -> FloatArray:
        """Encode prompts; see `Texts.encode`."""
        if refuse_cut:
            self.tower.text_inputs.check_whole(prompts)
        self.prompts_encoded += len(prompts)
        return self.tower.encode(prompts)

    async def digests(self, prompts: Sequence[str], encodes_next: bool) -> list[bytes]:
        """Tokenize prompts; the tower is loaded only if it is needed next. See `Texts.digests`."""
        inputs = self.tower.text_inputs if encodes_next else self.text_inputs
        return inputs.digests(prompts)
