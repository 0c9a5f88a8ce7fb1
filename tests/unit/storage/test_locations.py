"""Places in object storage: every spelling of a URI names the same place and the same options."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serve_app.storage.locations import bucket_region, parse_location, shown_location
from serve_app.storage.opening import open_store


class Regions(BaseHTTPRequestHandler):
    """AWS as it answers somebody without credentials: 403, and the region of the bucket."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        if self.path == "/mine":
            self.send_header("x-amz-bucket-region", "eu-west-1")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def aws() -> Iterator[str]:
    """The address of a server that knows one bucket's region."""
    server = HTTPServer(("127.0.0.1", 0), Regions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("uri", "url", "options"),
    [
        (
            "s3://b/p/q/?region=eu-1&endpoint=http://minio:9000",
            "s3://b/p/q",
            {"region": "eu-1", "endpoint": "http://minio:9000"},
        ),
        (
            "s3://b/p?scheme=http&region=eu-1&endpoint_override=minio%3A9000",
            "s3://b/p",
            {"region": "eu-1", "endpoint": "http://minio:9000"},
        ),
        (
            "s3://b?region=eu-1&endpoint_override=minio&allow_bucket_creation=true",
            "s3://b",
            {"region": "eu-1", "endpoint": "https://minio"},
        ),
        (
            "s3://key:se%2Fcret@b/p?region=eu-1",
            "s3://b/p",
            {"region": "eu-1", "access_key_id": "key", "secret_access_key": "se/cret"},
        ),
        (
            "s3://anonymous@b/p?region=eu-1",
            "s3://b/p",
            {"region": "eu-1", "skip_signature": "true"},
        ),
        ("gs://b/p", "gs://b/p", {}),
        ("gs://anonymous@b/p?retry_limit_seconds=3", "gs://b/p", {"skip_signature": "true"}),
        (
            "abfss://container@account.dfs.core.windows.net/p",
            "abfss://container@account.dfs.core.windows.net/p",
            {},
        ),
        ("file:///tmp/banks", "file:///tmp/banks", {}),
    ],
)
def test_a_uri_names_a_place_and_its_options(
    uri: str, url: str, options: dict[str, str], tmp_path: object
) -> None:
    """In obstore's names and in pyarrow's; obstore opens all of them."""
    location = parse_location(uri)
    assert (location.url, dict(location.options)) == (url, options)
    open_store(location.url, location.options)


def test_no_secret_is_shown() -> None:
    """Neither a user nor a query is in what messages show."""
    assert shown_location("s3://key:hunter2@b/p?secret=hunter2") == "s3://b/p"


def test_a_bucket_of_aws_is_found_in_its_region(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS names the region to anybody, so a URI without one works; the environment comes first."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert bucket_region("mine", aws) == "eu-west-1"
    assert bucket_region("other", aws) is None
    assert dict(parse_location("s3://mine/p", aws).options) == {"region": "eu-west-1"}
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert parse_location("s3://mine/p", aws).options == ()


def test_an_address_that_does_not_answer_names_no_region() -> None:
    """Then obstore reports what is wrong with the bucket."""
    assert bucket_region("mine", "http://127.0.0.1:9") is None
