"""Tag banks of labels that came with requests, the least recently used dropped when they outgrow their bytes."""

from collections import OrderedDict

from serve_app.tagging.tag_bank import TagBank
from serve_app.tagging.vocabulary import TagVocabulary


class BankCache:
    """An LRU of tag banks by vocabulary, bounded in bytes of embeddings."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._banks: OrderedDict[TagVocabulary, TagBank] = OrderedDict()
        self._nbytes = 0

    def get(self, vocabulary: TagVocabulary) -> TagBank | None:
        """Return the bank of a vocabulary, or None if it is not (or no longer) here."""
        bank = self._banks.get(vocabulary)
        if bank is not None:
            self._banks.move_to_end(vocabulary)
        return bank

    def put(self, bank: TagBank) -> None:
        """Keep a bank; one larger than the whole cache is not kept."""
        if bank.nbytes > self._max_bytes:
            return
        replaced = self._banks.pop(bank.vocabulary, None)
        self._nbytes += bank.nbytes - (replaced.nbytes if replaced else 0)
        self._banks[bank.vocabulary] = bank
        while self._nbytes > self._max_bytes:
            _, dropped = self._banks.popitem(last=False)
            self._nbytes -= dropped.nbytes
