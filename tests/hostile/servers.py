"""Servers that send what no honest server sends, over a real socket."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Respond = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(respond: Respond) -> Iterator[str]:
    """Answer every request by a function that writes to the connection, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            self.rfile.read(length)
            with contextlib.suppress(OSError):  # the client leaves when it has read enough
                respond(self)

        do_GET = do_POST = do_PUT = handle_any  # noqa: N815, names of http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def whole(body: bytes, status: int = 200, **headers: str) -> Respond:
    """Return a response that is sent whole."""

    def respond(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            to.send_header(name.replace("_", "-"), value)
        to.send_header("content-length", str(len(body)))
        to.end_headers()
        to.wfile.write(body)

    return respond


def endless(
    part: bytes, status: int = 200, pause: Callable[[], object] = lambda: None, **headers: str
) -> Respond:
    """Return a response that never ends."""

    def respond(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        while True:
            to.wfile.write(part)
            pause()

    return respond


def slow_head(to: BaseHTTPRequestHandler) -> None:
    """Send a head that never ends, a header at a time."""
    to.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        to.wfile.write(b"x: y\r\n")
        time.sleep(0.05)
