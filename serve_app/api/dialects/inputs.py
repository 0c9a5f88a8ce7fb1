"""The inputs of `POST /v1/embeddings`: which one is a text and which one is an image.

An image in the wrong place must not be embedded as the characters of its base64 or of its address:
the embedding would look right and mean nothing. What could be either is refused, with the ways to
say which it is.

Not here: turning an image's text into its bytes (`sources.py`).
"""

import binascii
import re
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.api.long_texts import HEAD_BYTES, LongText
from serve_app.api.sources import ImageText, data_uri_prefix
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.images.formats import signature_of
from serve_app.tagging.prompts import check_text

Modality = Literal["text", "image"]

MAX_TEXT_CHARACTERS = 8_192
"""Characters of one text.

The tower reads its beginning, as much as the checkpoint's context length holds.
"""
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://\S*|(blob|file):\S+", re.IGNORECASE)
"""A text that is an address and nothing else."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{64}")
"""The beginning of base64. A shorter image could not be decoded anyway."""
_TEXT_OBJECT = 'To embed it as a text, send {"text": "…"}.'


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to embed: a text, or the base64, data URI or URL of an image."""

    text: str | None = None
    image: ImageText | None = None


def read_items(
    content: Any, messages: list[dict[str, Any]] | None, modality: Modality | None, limits: Limits
) -> list[Item]:
    """Return what is to be embedded, in order.

    Args:
        content: The field `input`: a text, an object with `text` or `image`, or a list of them.
        messages: vLLM's form, with exactly one text or image.
        modality: What the texts of `input` are; None if each decides for itself.
        limits: The service's limits.

    Raises:
        InvalidRequest: An input is neither a text nor an image, or could be either.
        PayloadTooLarge: There are too many inputs.
    """
    if (content is None) == (messages is None):
        raise InvalidRequest("Send exactly one of input and messages.")
    if messages is not None:
        return [_item(_of_messages(messages), modality)]
    if not isinstance(content, list):
        return [_item(content, modality)]
    if not content:
        raise InvalidRequest("input is empty; give at least one text or image.")
    if len(content) > limits.max_labels_per_request:
        raise PayloadTooLarge(
            f"The request holds {len(content):,} inputs; at most {limits.max_labels_per_request:,} "
            "are allowed."
        )
    items: list[Item] = []
    for i, value in enumerate(content):
        try:
            items.append(_item(value, modality))
        except InvalidRequest as error:
            raise InvalidRequest(f"input[{i}]: {error.message}") from error
    return items


def _item(value: Any, modality: Modality | None) -> Item:
    if isinstance(value, dict):
        return _of_object(value)
    if not isinstance(value, str | LongText):
        raise InvalidRequest(
            "Each input must be a text, a data URI of an image, or an object with text or image; "
            "tokens are not taken."
        )
    head = _head(value)
    if modality == "image":
        return Item(image=value)
    if data_uri_prefix(head):
        return Item(image=value)
    begins_as_uri = head.lstrip()[:5].lower() == b"data:"
    is_prose = head.lstrip()[5:6].isspace()  # "data: the new oil"
    if begins_as_uri and not (modality == "text" and is_prose):
        raise InvalidRequest(
            "An input that begins with data: must be a base64 data URI of an image, such as "
            f"data:image/png;base64,…. {_TEXT_OBJECT}"
        )
    if modality is None:
        _check_unambiguous(value, head)
    return Item(text=_text(value))


def _of_object(value: dict[str, Any]) -> Item:
    """Return the item of `{"text": …}` or `{"image": …}`; the other key may be there as null."""
    parts = {key: part for key, part in value.items() if part is not None}
    match list(parts.items()):
        case [("text", str() | LongText() as text)]:
            if data_uri_prefix(_head(text)):
                raise InvalidRequest(
                    "A text is the data URI of an image. Send it as image (or image_url in "
                    "messages), not as text."
                )
            return Item(text=_text(text))
        case [("image", str() | LongText() as image)]:
            return Item(image=image)
        case _:
            raise InvalidRequest(
                "An object must have either text or image, and nothing else; its value must be a "
                "string."
            )


def _check_unambiguous(value: str | LongText, head: bytes) -> None:
    """Raise `InvalidRequest` for a text that is probably meant as an image.

    Args:
        value: The text.
        head: Its first bytes.
    """
    address = None
    if isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS:
        address = _ADDRESS.fullmatch(value.strip())
    if address is not None:
        scheme = (address[1] or address[2]).lower()
        if scheme in ("http", "https"):
            raise InvalidRequest(
                "An input is only a URL. If it is the address of an image, add modality: image. "
                f"{_TEXT_OBJECT}"
            )
        raise InvalidRequest(
            f"An input is an address that begins with {scheme}:, which is not read here. Send the "
            f"image itself. {_TEXT_OBJECT}"
        )
    start = _BASE64.match(b"".join(head.split()))
    if start is not None and signature_of(binascii.a2b_base64(start[0])) != "other":
        raise InvalidRequest(
            "An input is the base64 of an image. Send it as a data URI, or add modality: image. "
            f"{_TEXT_OBJECT}"
        )


def _head(value: str | LongText) -> bytes:
    if isinstance(value, LongText):
        return value.head()
    return value[:HEAD_BYTES].encode("ascii", "replace")


def _text(value: str | LongText) -> str:
    if isinstance(value, LongText):
        raise InvalidRequest(
            f"A text has more than {MAX_TEXT_CHARACTERS:,} characters; at most "
            f"{MAX_TEXT_CHARACTERS:,} are allowed."
        )
    check_text(value)
    if not value.strip():
        raise InvalidRequest("A text is empty. Send at least one character, or leave it out.")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise InvalidRequest(
            f"A text has {len(value):,} characters; at most {MAX_TEXT_CHARACTERS:,} are allowed."
        )
    return value


def _of_messages(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the one text or image of vLLM's form as an object."""
    parts: list[Any] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            parts.append({"type": "text", "text": content})
        elif isinstance(content, list):
            parts += content
    if len(parts) != 1 or not isinstance(parts[0], dict):
        raise InvalidRequest(
            "messages must hold exactly one text or one image_url: the model embeds either, never "
            "both together."
        )
    part = parts[0]
    match part.get("type"):
        case "text":
            return {"text": part.get("text")}
        case "image_url" if isinstance(part.get("image_url"), dict):
            return {"image": part["image_url"].get("url")}
        case _:
            raise InvalidRequest(
                'The part of a message must be {"type": "text", …} or '
                '{"type": "image_url", "image_url": {"url": …}}.'
            )
