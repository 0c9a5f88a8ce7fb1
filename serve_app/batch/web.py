"""Fetches the images of a manifest from the web, with limits on bytes, redirects and time."""

from contextlib import closing

import httpx

from serve_app.errors import PayloadTooLarge, SourceUnavailable
from serve_app.untrusted.bounded_files import read_within
from serve_app.untrusted.bounded_http import ResponseTooLarge, read_response

MAX_REDIRECTS = 5
WEB_TIMEOUT_S = 30.0
WEB_TOTAL_S = 120.0
"""Timeouts for a silent host, and for one image in total."""
MAX_WEB_BYTES = 256 * 2**20


def _fetch(url: str, limit: int) -> tuple[bytes, str | None]:
    """Fetch a URL and follow redirects.

    httpx itself would read the bodies of redirects without a limit.
    """
    with httpx.Client(timeout=WEB_TIMEOUT_S, headers={"Accept-Encoding": "identity"}) as client:
        request = client.build_request("GET", url)
        for _ in range(MAX_REDIRECTS + 1):
            with closing(client.send(request, stream=True)) as response:
                if response.next_request is None:
                    response.raise_for_status()
                    body = read_response(response, limit, WEB_TOTAL_S)
                    return body.content, response.headers.get("etag")
                request = response.next_request
        raise SourceUnavailable(f"The host redirects more than {MAX_REDIRECTS} times.")


def read_web(url: str, max_bytes: int | None) -> tuple[bytes, str | None]:
    """Fetch an image of a manifest from the web, and its ETag.

    Every host is allowed, because the author of the manifest also runs the job.

    Raises:
        PayloadTooLarge: It has more than `max_bytes`.
        SourceUnavailable: It cannot be fetched in time.
    """
    limit = MAX_WEB_BYTES if max_bytes is None else max_bytes
    try:
        return read_within(lambda: _fetch(url, limit), WEB_TOTAL_S)
    except httpx.HTTPStatusError as error:
        raise SourceUnavailable(
            f"The host responded with status {error.response.status_code}."
        ) from error
    except ResponseTooLarge as error:
        raise PayloadTooLarge(
            f"The image has more than {limit:,} bytes, the limit (limits.max_image_bytes)."
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as error:
        raise SourceUnavailable(f"The host cannot be reached: {type(error).__name__}.") from error
