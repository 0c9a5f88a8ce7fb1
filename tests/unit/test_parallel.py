"""The division of the suite among processes names existing files and keeps units together."""

import pytest

from tests.parallel import FIRST, TESTS, UNITS, unit_of


@pytest.mark.parametrize("path", sorted({*UNITS, *(unit for unit in FIRST if "/" in unit)}))
def test_every_file_that_is_named_is_there(path: str) -> None:
    """A file that was renamed would lose its place without a word."""
    assert (TESTS / path).is_file()


@pytest.mark.parametrize(
    ("nodeid", "unit"),
    [
        ("tests/unit/api/test_app.py::test_a[python]", "unit/api/test_app.py"),
        ("tests/cluster/test_graph.py::test_a", "cluster"),
        ("tests/hostile/test_ports.py::test_a[python]", "exposed python"),
        ("tests/hostile/test_ports.py::test_a[haproxy]", "exposed haproxy"),
        ("tests/hostile/test_ports.py::test_without_a_service", "exposed haproxy"),
        ("tests/hostile/test_two_services.py::test_a[python-another user]", "exposed python"),
    ],
)
def test_tests_that_share_a_service_are_a_unit(nodeid: str, unit: str) -> None:
    """Others are a unit with the rest of their file."""
    assert unit_of(nodeid) == unit
