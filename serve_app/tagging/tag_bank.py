"""The text embeddings of a whole vocabulary: what an image embedding is compared with.

Not here: encoding the prompts (a text tower does), choosing tags from the scores (`selection.py`).
"""

from dataclasses import dataclass

from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.vocabulary import TagVocabulary


@dataclass(frozen=True, slots=True, eq=False)
class TagBank:
    """A vocabulary and its embeddings: `text_embeds` (T, D) float32, row t for label t."""

    vocabulary: TagVocabulary
    text_embeds: FloatArray

    @property
    def nbytes(self) -> int:
        """Size of the embeddings in bytes."""
        return self.text_embeds.nbytes


def build_tag_bank(vocabulary: TagVocabulary, prompt_embeds: FloatArray) -> TagBank:
    """Average each label's prompts into its row.

    The mean is left un-normalised: it is then the mean of the prompts' logits. Scaled back to unit norm, every logit
    would rise, by 0.55 where prompts have a cosine of 0.90 to each other, and thresholds would no longer hold.

    Args:
        vocabulary: T labels and K templates.
        prompt_embeds: (T·K, D) float32, unit norm, in the order of `render_prompts`.
    """
    templates = len(vocabulary.prompt_templates)
    grouped = prompt_embeds.reshape(len(vocabulary.labels), templates, -1)
    return TagBank(vocabulary, grouped[:, 0] if templates == 1 else grouped.mean(axis=1))
