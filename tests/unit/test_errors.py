"""The exception tree: every leaf crosses processes, has a status, and a code of its own."""

import inspect
import pickle

import pytest

from serve_app import errors
from serve_app.api.statuses import STATUSES, status_of

ALL = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.TaggerError)
]


@pytest.mark.parametrize("cls", ALL)
def test_error_survives_pickling(cls: type[errors.TaggerError]) -> None:
    """Errors cross processes by pickle with their message and class."""
    copy = pickle.loads(pickle.dumps(cls("Say what to do.")))
    assert type(copy) is cls
    assert copy.message == str(copy) == "Say what to do."


def test_codes_are_distinct() -> None:
    """A client can tell every error by its code."""
    assert len({cls.code for cls in ALL}) == len(ALL)


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_a_status_of_its_own(cls: type[errors.TaggerError]) -> None:
    """No error falls back on its base's status by accident; requests' faults are 4xx, the service's
    are not its 4xx.
    """
    assert cls in STATUSES
    if issubclass(cls, errors.RequestError):
        assert 400 <= STATUSES[cls] < 500


def test_status_of_a_subclass_is_that_of_its_base() -> None:
    """A new leaf gets its parent's status until the table says otherwise."""

    class Special(errors.InvalidImage):
        pass

    assert status_of(Special("x")) == STATUSES[errors.InvalidImage]
