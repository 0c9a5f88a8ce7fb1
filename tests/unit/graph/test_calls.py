"""Ray's exceptions become ours, none with a text from inside."""

import inspect
from typing import Any

import grpc
import pytest
import ray.exceptions
import ray.serve.exceptions
from ray.exceptions import RayTaskError

from serve_app.errors import (
    ConfigError,
    InferenceFailed,
    InvalidImage,
    Overloaded,
    TaggerError,
    Unavailable,
)
from serve_app.graph.calls import InnerCalls, to_tagger_error

SECRET = "/root/secret 10.0.0.7 Traceback"
FOREIGN = [
    cls
    for module in (ray.exceptions, ray.serve.exceptions)
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, Exception) and cls.__module__.startswith("ray")
]


def instance(cls: type[Exception]) -> Exception:
    """Make an exception without its constructor, which often needs ids of a live cluster."""
    error = cls.__new__(cls)
    error.args = (SECRET,)
    return error


@pytest.mark.parametrize("cls", FOREIGN, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore")
def test_every_exception_of_ray_is_mapped(
    cls: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Ray raises, a TaggerError without its text comes out."""
    monkeypatch.setattr(cls, "__str__", lambda self: SECRET)
    if issubclass(cls, RayTaskError):
        return
    mapped = to_tagger_error(instance(cls))
    assert isinstance(mapped, TaggerError)
    assert SECRET not in str(mapped)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ActorDiedError", Unavailable),
        ("ActorUnavailableError", Unavailable),
        ("RayActorError", Unavailable),
        ("BackPressureError", Overloaded),
        ("DeploymentUnavailableError", Unavailable),
        ("OutOfMemoryError", InferenceFailed),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_can_be_tried_again_is_told_from_what_cannot(
    name: str, expected: type[TaggerError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead replicas are tried again, full queues and failures are not."""
    cls = getattr(ray.exceptions, name, None) or getattr(ray.serve.exceptions, name)
    monkeypatch.setattr(cls, "__str__", lambda self: SECRET)
    assert type(to_tagger_error(instance(cls))) is expected


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED", "RESOURCE_EXHAUSTED"]
)
def test_a_cut_connection_is_tried_again_and_a_refused_message_is_not(code: str) -> None:
    """Serve passes on what gRPC says of a process that was killed; a message too large would be
    refused again.
    """
    error = grpc.aio.AioRpcError(
        grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), details=SECRET
    )
    mapped = to_tagger_error(error)
    assert type(mapped) is (InferenceFailed if code == "RESOURCE_EXHAUSTED" else Unavailable)
    assert SECRET not in str(mapped)


@pytest.mark.parametrize(
    "cause", [InvalidImage("Send it whole."), ConfigError("bad"), ValueError(SECRET)]
)
def test_what_a_replica_raised_is_unwrapped(cause: Exception) -> None:
    """Our own error comes out as it was raised, any other as InferenceFailed without its text."""
    error = RayTaskError("encode", f"{SECRET}\n{cause}", cause).as_instanceof_cause()
    mapped = to_tagger_error(error)
    assert SECRET not in str(mapped)
    assert not isinstance(mapped, RayTaskError)
    if isinstance(cause, TaggerError):
        assert mapped is cause
    else:
        assert type(mapped) is InferenceFailed


class FullStore:
    """A handle whose object store takes nothing: only calls by value succeed."""

    def __init__(self, by_reference: bool = False) -> None:
        self.by_reference = by_reference
        self.take = self

    def options(self, *, _by_reference: bool) -> "FullStore":
        return FullStore(_by_reference)

    async def remote(self, argument: str) -> str:
        if self.by_reference:
            raise ray.exceptions.OutOfDiskError(SECRET)
        return f"{argument} by value"


async def test_what_the_object_store_cannot_take_goes_by_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The call succeeds, and a warning says why it is slower."""
    handle: Any = FullStore()
    calls = InnerCalls(handle, timeout_s=10.0, by_reference_bytes=100)
    assert await calls("take", "small", nbytes=99) == "small by value"
    assert caplog.text == ""
    assert await calls("take", "large", nbytes=100) == "large by value"
    assert "object store cannot take 100 bytes (OutOfDiskError)" in caplog.text
    assert SECRET not in caplog.text
