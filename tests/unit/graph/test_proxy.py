"""What no client may say to Serve, and what Serve says to nobody."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serve_app.graph.proxy import middlewares


async def headers(request: Request) -> JSONResponse:
    return JSONResponse(dict(request.headers))


def client() -> TestClient:
    routes = [Route("/headers", headers), Route("/-/routes", headers), Route("/-/healthz", headers)]
    return TestClient(Starlette(routes=routes, middleware=middlewares()))


def test_serves_own_headers_are_taken_off() -> None:
    """In any case; others stay."""
    sent = {
        "X-Request-Timeout-Seconds": "0",
        "x-request-disconnect-DISABLED": "?1",
        "X-Request-Id": "kept",
    }
    received = client().get("/headers", headers=sent).json()
    assert received["x-request-id"] == "kept"
    assert not {name for name in received if "timeout" in name or "disconnect" in name}


def test_the_list_of_applications_is_closed_and_health_is_open() -> None:
    """404, also with a slash behind it."""
    assert client().get("/-/routes").status_code == 404
    assert client().post("/-/routes/").status_code == 404
    assert client().get("/-/healthz").status_code == 200
