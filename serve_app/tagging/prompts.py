"""Prompt templates and labels, and the prompts that the text tower reads."""

from collections.abc import Sequence

from serve_app.errors import InvalidRequest
from serve_app.terminal.printable import HIDDEN, printable

DEFAULT_TEMPLATE = "this is a photo of {label}."
"""Source: the plugin's specification, and the Hugging Face pipeline's default hypothesis template
in lower case."""
PLACEHOLDERS = ("{label}", "{}")
"""Either marks the label's place; the Hugging Face pipeline's `hypothesis_template` uses `{}`."""
MAX_TEMPLATES = 100
MAX_TEMPLATE_CHARACTERS = 256
"""The largest published ensemble has 81 (big_vision, CLIP's ImageNet templates)."""


def check_templates(templates: Sequence[str]) -> None:
    """Raise `InvalidRequest` for templates that are too many, too long or without a placeholder."""
    if not 1 <= len(templates) <= MAX_TEMPLATES:
        raise InvalidRequest(
            f"There are {len(templates)} prompt_templates; give 1 to {MAX_TEMPLATES}."
        )
    for template in templates:
        check_shown(template, "prompt template")
        if sum(template.count(placeholder) for placeholder in PLACEHOLDERS) != 1:
            raise InvalidRequest(
                f"The prompt template {template[:60]!r} must hold {{label}} exactly once."
            )
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise InvalidRequest(
                f"A prompt template has {len(template)} characters; at most "
                f"{MAX_TEMPLATE_CHARACTERS} are taken."
            )


def check_text(text: str) -> None:
    """Raise `InvalidRequest` for text that is not Unicode.

    JSON can hold half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "A label or template holds half of a surrogate pair, which is no character."
        ) from error


def check_shown(text: str, what: str = "label") -> None:
    """Raise `InvalidRequest` for text with a hidden character that people are shown.

    Such a label could move a terminal's cursor, imitate a log line, or read differently from what
    it is. `what` names the text in the message.
    """
    check_text(text)
    if found := HIDDEN.search(text):
        code_point = f"U+{ord(found[0]):04X}"
        raise InvalidRequest(
            f'The {what} "{printable(text[:60])}" holds the control or invisible character '
            f"{code_point}; remove it."
        )


def fill_template(template: str, label: str) -> str:
    """Return the template with the label in its place; other braces stay as they are."""
    placeholder = next(p for p in PLACEHOLDERS if p in template)
    return template.replace(placeholder, label, 1)


def render_prompts(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return T·K prompts, all of the first label's, then all of the second's."""
    return [fill_template(template, label) for label in labels for template in templates]
