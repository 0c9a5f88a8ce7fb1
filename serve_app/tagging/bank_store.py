"""Tag banks on disk and in object storage: built once, memory-mapped by every process of a node.

A bank is a safetensors file named by its fingerprint, so it is never wrong and never overwritten.
Its metadata says which names and templates each row was made of, so a vocabulary with one more
label is built from the rows of the previous one.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from obstore.exceptions import BaseError, NotFoundError
from safetensors import SafetensorError
from safetensors.numpy import save_file

from serve_app.errors import ConfigError
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.safetensors_files import read_header
from serve_app.siglip.user_folders import cache_root, expand_user
from serve_app.storage.locations import parse_location, shown_location
from serve_app.storage.opening import open_store
from serve_app.tagging.tag_bank import RowKey, TagBank, bank_fingerprint, row_keys
from serve_app.tagging.vocabulary import TagVocabulary
from serve_app.untrusted.bounded_files import parse_json

logger = logging.getLogger(__name__)

SUFFIX = ".tagbank.safetensors"
TENSOR = "text_embeds"
MAX_BANKS = 64
"""Files kept on disk; the least recently used go."""
AUTO = "auto"
"""Means `cache_folder`."""
MAX_RETRIES = 2
"""Of a request to object storage: without it a service builds its banks itself, and starts."""


def cache_folder() -> Path:
    """Return where banks are stored on this machine.

    Raises:
        ConfigError: There is no cache folder; see `cache_root`.
    """
    return cache_root() / "tag-banks"


class BankStore:
    """A folder of tag banks, which may be the copy of a prefix in object storage."""

    def __init__(self, location: str) -> None:
        """Open a store.

        Args:
            location: A folder, `auto` for `cache_folder`, or a URI of object storage such as
                `s3://bucket/prefix`; see `storage/locations.py`.

        Raises:
            ConfigError: The URI is not valid, or there is no home folder.
        """
        remote = "://" in location
        self.folder = cache_folder() if remote or location == AUTO else expand_user(location)
        self._remote = _open_remote(location) if remote else None

    def load(self, vocabulary: TagVocabulary, encoder: str) -> TagBank | None:
        """Return the bank of a vocabulary, memory-mapped, or None where there is none."""
        path = self._path(vocabulary, encoder)
        try:
            if not path.is_file() and not self._fetch(path):
                return None
            embeds, keys = _read(path)
        except (ConfigError, OSError) as error:
            logger.warning("a stored tag bank is not used: %s", error)
            return None
        if keys != row_keys(vocabulary):
            logger.warning("%s holds other rows than its name says; it is not used", path)
            return None
        _touch(path)
        return TagBank(vocabulary, embeds, encoder)

    def rows(self, wanted: Iterable[RowKey], encoder: str) -> dict[RowKey, FloatArray]:
        """Return those rows that some stored bank of the same encoder has, the newest banks
        first.
        """
        missing = set(wanted)
        found = {}
        for path in self._newest():
            if not missing:
                break
            try:
                if _encoder_of(path) != encoder:
                    continue
                embeds, keys = _read(path)
            except ConfigError as error:
                logger.warning("a stored tag bank is not used: %s", error)
                continue
            for key, row in zip(keys, embeds, strict=True):
                if key in missing:
                    found[key] = np.array(row)
                    missing.discard(key)
        return found

    def save(self, bank: TagBank) -> TagBank:
        """Store a bank and return it memory-mapped; where that cannot be done, say so in the log
        and return it as it is.
        """
        path = self._path(bank.vocabulary, bank.encoder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self.folder, prefix=".writing-", delete=False
            ) as file:
                temporary = Path(file.name)
            try:
                save_file(
                    {TENSOR: np.ascontiguousarray(bank.text_embeds)}, temporary, _metadata(bank)
                )
                temporary.chmod(0o644)
                os.replace(
                    temporary, path
                )  # whole or not at all, also for those who read at this moment
            finally:
                temporary.unlink(missing_ok=True)
            self._drop_oldest()
        except (OSError, SafetensorError) as error:  # a full disk is the latter
            logger.warning(
                "the tag bank could not be stored in %s: %s", self.folder, type(error).__name__
            )
            return bank
        self._send(path)
        return self.load(bank.vocabulary, bank.encoder) or bank

    def _path(self, vocabulary: TagVocabulary, encoder: str) -> Path:
        return self.folder / f"{bank_fingerprint(vocabulary, encoder)}{SUFFIX}"

    def _newest(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for _, path in sorted(_with_times(self.folder), reverse=True)]

    def _drop_oldest(self) -> None:
        for path in self._newest()[MAX_BANKS:]:
            path.unlink(missing_ok=True)

    def _fetch(self, path: Path) -> bool:
        """Copy a bank from object storage; False where it has none or cannot be reached."""
        if self._remote is None:
            return False
        try:
            data = self._remote.read(path.name)
            if data is None:
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self.folder, prefix=".reading-", delete=False
            ) as file:
                temporary = Path(file.name)
                file.write(data)
            try:
                temporary.chmod(0o644)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, BaseError) as error:
            logger.warning(
                "the object store of tag banks could not be read: %s", type(error).__name__
            )
            return False
        return True

    def _send(self, path: Path) -> None:
        if self._remote is None:
            return
        try:
            self._remote.write(path.name, path.read_bytes())
        except (OSError, BaseError) as error:
            logger.warning(
                "the tag bank could not be sent to the object store: %s", type(error).__name__
            )


@dataclass(frozen=True, slots=True)
class _Remote:
    """A prefix of an object store."""

    store: Any

    def read(self, name: str) -> bytes | None:
        """Return an object, or None if there is none."""
        try:
            return bytes(obstore.get(self.store, name).bytes())
        except (FileNotFoundError, NotFoundError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write an object; it appears whole."""
        obstore.put(self.store, name, data)


def _open_remote(uri: str) -> _Remote:
    location = parse_location(uri)
    try:
        return _Remote(open_store(location.url, location.options, MAX_RETRIES))
    except (BaseError, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0].replace(uri, location.url)
        raise ConfigError(f"tag_banks: {shown_location(uri)} cannot be opened: {reason}") from error


def _metadata(bank: TagBank) -> dict[str, str]:
    own = bank.vocabulary
    said = {
        "names": own.names,
        "prompt_templates": own.prompt_templates,
        "background_prompts": own.background_prompts,
    }
    return {"encoder": bank.encoder, "fingerprint": bank.fingerprint} | {
        key: json.dumps(value, ensure_ascii=False) for key, value in said.items()
    }


def _read(path: Path) -> tuple[FloatArray, list[RowKey]]:
    """Return the rows of a file, memory-mapped, and what each follows from.

    Raises:
        ConfigError: It is not a bank, or not all of one.
    """
    header = read_header(path)
    try:
        dtype, shape, (begin, end) = header.tensors[TENSOR]
        templates = _texts(header.metadata["prompt_templates"])
        keys: list[RowKey] = [(templates, name) for name in _texts(header.metadata["names"])]
        keys += [((), prompt) for prompt in _texts(header.metadata["background_prompts"])]
        rows, width = shape
        whole = (
            dtype == "F32"
            and rows == len(keys)
            and end - begin == 4 * rows * width
            and path.stat().st_size == header.start + end
        )
        if not whole:
            raise ConfigError(f"{path} is damaged.")
        embeds = np.memmap(path, "<f4", "r", header.start + begin, (rows, width))
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{path} is not a tag bank.") from error
    if not np.isfinite(embeds).all():
        raise ConfigError(f"{path} holds numbers that are not finite.")
    return embeds, keys


def _texts(written: str) -> tuple[str, ...]:
    values = parse_json(written, "a list of texts")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("expected a list of texts")
    return tuple(values)


def _encoder_of(path: Path) -> str | None:
    return read_header(path).metadata.get("encoder")


def _with_times(folder: Path) -> Iterator[tuple[float, Path]]:
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            yield path.stat().st_mtime, path
        except FileNotFoundError:  # another process dropped it
            continue


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # a read-only store has no need of it
        logger.debug("%s is read-only", path)
