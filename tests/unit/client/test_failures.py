"""Answers and httpx's exceptions become the exceptions of `serve_app.errors`, each as the right
one.
"""

import inspect

import httpx
import pytest

from serve_app import errors
from serve_app.api.error_responses import error_response
from serve_app.api.statuses import status_of
from serve_app.client.failures import (
    ERRORS,
    HTTPX_ERRORS,
    error_of_entry,
    failure_of_exception,
    failure_of_response,
)

AT = "http://tags.example"
ALL = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.TaggerError)
]
HTTPX = [
    cls
    for _, cls in inspect.getmembers(httpx, inspect.isclass)
    if issubclass(cls, Exception) and cls.__module__.startswith("httpx")
]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_of_the_service_comes_back_as_itself(cls: type[errors.TaggerError]) -> None:
    """What the HTTP face writes of an error is read as its class, with its code, sentence and
    status.
    """
    written = error_response(cls("Say what to do."))
    failure = failure_of_response(
        httpx.Response(
            written.status_code, headers=dict(written.headers), content=bytes(written.body)
        ),
        AT,
    )
    assert type(failure.error) is cls
    assert (failure.error.code, str(failure.error), failure.error.status) == (
        cls.code,
        "Say what to do.",
        status_of(cls("")),
    )
    assert failure.is_temporary == (cls in (errors.Overloaded, errors.Unavailable))
    assert failure.retry_after_s == (1.0 if failure.is_temporary else None)


def test_the_table_has_every_code() -> None:
    """No class of the tree is missing, and none stands under another's code."""
    assert {cls.code: cls for cls in ALL} == ERRORS


@pytest.mark.parametrize("cls", HTTPX, ids=lambda cls: cls.__name__)
def test_every_exception_of_httpx_is_mapped(cls: type[Exception]) -> None:
    """Whatever httpx raises is caught at the border, and comes out with the address and with its
    cause.
    """
    assert issubclass(cls, HTTPX_ERRORS)
    exception = cls.__new__(cls)
    error = failure_of_exception(exception, AT).error
    assert isinstance(error, errors.TaggerError)
    assert AT in str(error)
    assert error.__cause__ is exception


@pytest.mark.parametrize(
    ("exception", "expected", "is_temporary"),
    [
        (httpx.ConnectError(""), errors.Unavailable, True),
        (httpx.ConnectTimeout(""), errors.Unavailable, True),
        (httpx.RemoteProtocolError(""), errors.Unavailable, True),
        (httpx.ReadError(""), errors.Unavailable, True),
        (httpx.WriteError(""), errors.Unavailable, True),
        (httpx.ReadTimeout(""), errors.DeadlineExceeded, False),
        (httpx.WriteTimeout(""), errors.DeadlineExceeded, False),
        (httpx.UnsupportedProtocol(""), errors.InvalidRequest, False),
        (httpx.InvalidURL(""), errors.InvalidRequest, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_broke_is_tried_again_and_what_took_too_long_is_not(
    exception: Exception, expected: type, is_temporary: bool
) -> None:
    """A connection that broke loses nothing; a service that is too slow is not given the same work
    twice.
    """
    failure = failure_of_exception(exception, AT)
    assert type(failure.error) is expected
    assert failure.is_temporary == is_temporary


@pytest.mark.parametrize(
    ("status", "expected", "is_temporary"),
    [
        (302, errors.RequestError, False),
        (401, errors.Unauthorized, False),
        (404, errors.RequestError, False),
        (408, errors.DeadlineExceeded, False),
        (413, errors.PayloadTooLarge, False),
        (429, errors.Overloaded, True),
        (500, errors.ServiceError, False),
        (502, errors.Unavailable, True),
        (503, errors.Unavailable, True),
        (504, errors.DeadlineExceeded, False),
    ],
)
def test_a_gateways_page_is_read_by_its_status(
    status: int, expected: type, is_temporary: bool
) -> None:
    """HTML is told as what it is, with the address and the status, and without the page."""
    failure = failure_of_response(httpx.Response(status, html="<html>secret</html>"), AT)
    assert type(failure.error) is expected
    assert failure.is_temporary == is_temporary
    assert failure.error.status == status
    assert AT in str(failure.error)
    assert str(status) in str(failure.error)
    assert "secret" not in str(failure.error)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, errors.RequestError),
        (413, errors.PayloadTooLarge),
        (503, errors.Unavailable),
        (507, errors.ServiceError),
    ],
)
def test_a_code_of_a_newer_service_falls_back_on_its_status(status: int, expected: type) -> None:
    """The class follows from the status, and the code stays what the service said."""
    error = failure_of_response(
        httpx.Response(status, json={"error": {"code": "brand_new", "message": "Say what to do."}}),
        AT,
    ).error
    assert type(error) is expected
    assert (error.code, str(error)) == ("brand_new", "Say what to do.")
    assert expected.code != "brand_new"


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"error": "no"},
        {"error": {"code": 1, "message": "x"}},
        {"error": {"code": "x"}},
    ],
)
def test_what_has_not_the_shape_of_an_error_is_none(entry: object) -> None:
    """Only a code and a message, both texts, are read as ours."""
    assert error_of_entry(entry) is None
