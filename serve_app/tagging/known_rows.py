"""Rows of text embeddings that need not be encoded: of a cache, of loaded and of stored banks."""

from collections.abc import Iterable, Mapping, Sequence

from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.bank_store import BankStore
from serve_app.tagging.byte_cache import ByteCache
from serve_app.tagging.tag_bank import RowKey, TagBank, assemble_bank, row_keys
from serve_app.tagging.vocabulary import TagVocabulary


class KnownRows:
    """The text embeddings of one encoder that a process has."""

    def __init__(self, encoder: str, cache_bytes: int, tag_banks: str | None) -> None:
        """Start with an empty cache.

        Args:
            encoder: Fingerprint of the encoder.
            cache_bytes: Size of the cache for rows of requests.
            tag_banks: Where registered banks are stored; None for nowhere.

        Raises:
            ConfigError: `tag_banks` cannot be opened.
        """
        self.encoder = encoder
        self._cache = ByteCache[RowKey, FloatArray](cache_bytes, _row_bytes)
        self.store = None if tag_banks is None else BankStore(tag_banks)

    def stored(self, vocabulary: TagVocabulary) -> TagBank | None:
        """Return the stored bank of a vocabulary."""
        return None if self.store is None else self.store.load(vocabulary, self.encoder)

    def cached(self, keys: Iterable[RowKey]) -> dict[RowKey, FloatArray]:
        """Return the rows that recent requests needed."""
        return {key: row for key in keys if (row := self._cache.get(key)) is not None}

    def remember(self, rows: Mapping[RowKey, FloatArray]) -> None:
        """Cache rows of a request."""
        for key, row in rows.items():
            self._cache.put(key, row.copy())  # a view would keep the whole batch in memory

    def find(self, keys: Sequence[RowKey], banks: Iterable[TagBank]) -> dict[RowKey, FloatArray]:
        """Return the rows that loaded or stored banks have.

        Cached rows are not used: a request's name may have been cut, and a registered one must not
        be.
        """
        found: dict[RowKey, FloatArray] = {}
        for bank in banks:
            if bank.encoder == self.encoder and len(found) < len(keys):
                rows = bank.rows()
                found |= {key: rows[key] for key in keys if key in rows and key not in found}
        missing = [key for key in keys if key not in found]
        return found | (
            self.store.rows(missing, self.encoder) if missing and self.store is not None else {}
        )

    def keep(self, vocabulary: TagVocabulary, rows: dict[RowKey, FloatArray]) -> TagBank:
        """Assemble a registered vocabulary's bank and store it."""
        bank = assemble_bank(vocabulary, rows, self.encoder)
        return bank if self.store is None else self.store.save(bank)


def _row_bytes(key: RowKey, row: FloatArray) -> int:
    templates, said = key
    return row.nbytes + 4 * (len(said) + sum(len(template) for template in templates))


def missing_rows(vocabulary: TagVocabulary, found: dict[RowKey, FloatArray]) -> list[RowKey]:
    """Return the rows of a vocabulary that are not found, each once."""
    return [key for key in dict.fromkeys(row_keys(vocabulary)) if key not in found]
