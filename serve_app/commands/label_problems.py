"""Finds labels of a configuration that its checkpoint cannot use."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.tagging.same_text import check_words, naming_prompts, same_text_problems
from serve_app.tagging.tag_bank import prompts_of, row_keys
from serve_app.tagging.vocabulary import TagVocabulary

if TYPE_CHECKING:
    from serve_app.towers.tokenizer import SiglipTextInputs


def label_problems(config: ServiceConfig) -> list[str]:
    """Return one line for each label that the checkpoint of a configuration cannot use.

    These are prompts with more tokens than the checkpoint reads, labels that its tokenizer cannot
    tell apart, and labels that its tokenizer reads as empty.

    Raises:
        ConfigError: The checkpoint cannot be read.
    """
    scorer = LocalScorer(config)
    inputs = scorer.text_inputs
    lines: list[str] = []
    for name, registered in config.vocabularies.items():
        vocabulary = registered.vocabulary
        place_of = partial(config.place_of, name)
        try:
            check_words(vocabulary, scorer.checkpoint.strips_punctuation)
        except InvalidRequest as error:
            lines.append(f"{name}: {error}")
            continue
        lines += _overlong(vocabulary, inputs, place_of)
        digests = inputs.digests(naming_prompts(vocabulary))
        lines += same_text_problems(vocabulary, digests, place_of)
    return lines


def _overlong(
    vocabulary: TagVocabulary, inputs: "SiglipTextInputs", place_of: Callable[[str], str]
) -> list[str]:
    owners = [
        *vocabulary.labels,
        *(vocabulary.labels[i] for i in vocabulary.alias_owners),
        *vocabulary.background_prompts,
    ]
    return [
        f"{place_of(label)}: {inputs.overlong_message(prompt, tokens)}"
        for key, label in zip(row_keys(vocabulary), owners, strict=True)
        for prompt, tokens in inputs.overlong(prompts_of(key))
    ]
