"""The route table: documented paths are routed, and errors have the shape of a path's clients."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.testclient import TestClient

from serve_app.api.admission import Admission
from serve_app.api.app import all_routes, create_app, edge
from serve_app.api.application import Application
from serve_app.api.document import openapi_document
from serve_app.api.error_shapes import own_shape
from serve_app.api.routes import ApiRoute, Operation, Routes, RouteTable
from serve_app.config.access import Access
from serve_app.config.service import Limits
from serve_app.demo.settings import demo_config
from serve_app.errors import Overloaded, TaggerError

SHAPES: dict[str, set[str]] = {
    "own": {"code", "message"},
    "openai": {"message", "type", "param", "code"},
    "hugging_face": {"error", "error_code"},
    "open_inference": {"error"},
}
"""The keys by which a client recognises an error: of `error`, or of the whole body."""
BY_PATH = {
    "/v1/tag": "own",
    "/v1/score": "own",
    "/v1/vocabularies/x": "own",
    "/v1/tag/below": "own",
    "/nothing": "own",
    "/page/none.js": "own",
    "/docs/assets/none.js": "own",
    "/v1/embeddings": "openai",
    "/v1/models": "openai",
    "/v1/embeddings/below": "openai",
    "/hf": "hugging_face",
    "/predict": "hugging_face",
    "/": "hugging_face",
    "/hf/below": "hugging_face",
    "/v2": "open_inference",
    "/v2/health/ready": "open_inference",
    "/v2/models/demo": "open_inference",
    "/v2/nothing": "open_inference",
}


class NoTagger:
    """A tagger of a service that is never asked."""


class Failing:
    """A tagger of which every method raises the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, _: str) -> Any:
        async def fail(*_: Any, **__: Any) -> None:
            raise self.error

        return fail


@pytest.fixture
def routes() -> list[ApiRoute]:
    return all_routes(NoTagger(), demo_config())  # type: ignore[arg-type]


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(NoTagger(), demo_config())) as client:  # type: ignore[arg-type]
        yield client


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("SIGLIP_API_KEYS", "alice sha256:" + "0" * 64)
    config = demo_config().model_copy(update={"access": Access(api_keys="env")})
    with TestClient(create_app(NoTagger(), config)) as client:  # type: ignore[arg-type]
        yield client


def shape_of(response: Any) -> str:
    """Return the name of the shape that an error has."""
    body = response.json()
    keys = set(body["error"]) if isinstance(body["error"], dict) else set(body)
    return next(name for name, expected in SHAPES.items() if keys == expected)


def test_the_document_has_every_route_and_nothing_else(
    routes: list[ApiRoute], client: TestClient
) -> None:
    """Each documented path and method is the route that answers it, and the reverse."""
    paths = client.get("/openapi.json").json()["paths"]
    documented = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    routed = {(route.path_format, route.method) for route in routes if route.operation is not None}
    assert documented == routed
    undocumented = {route.path for route in routes if route.operation is None}
    assert undocumented == {"/page/{name}", "/openapi.json", "/docs", "/docs/assets/{name}"}


def test_no_route_is_written_twice_or_hidden_by_another(routes: list[ApiRoute]) -> None:
    """The first route that matches a path and method is the only one."""
    table = RouteTable(routes)
    for route in routes:
        path = route.path_format.replace("{", "").replace("}", "")
        scope = {"type": "http", "method": route.method, "path": path}
        assert table.nearest(scope) is route
    operations = [(route.path, route.method) for route in routes]
    assert len(set(operations)) == len(operations)


def test_operation_ids_are_unique_and_stay(client: TestClient) -> None:
    """Generated clients name their methods after them."""
    paths = client.get("/openapi.json").json()["paths"]
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    assert {"tag_v1_tag_post", "vocabulary_v1_vocabularies__name__get", "hugging_face_hf"} < set(
        ids
    )


def test_every_path_parameter_is_documented(client: TestClient) -> None:
    """With the name that the path has it by."""
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        in_path = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in methods.values():
            parameters = operation.get("parameters", ())
            assert {one["name"] for one in parameters if one["in"] == "path"} == in_path, path


def test_every_response_of_an_operation_has_a_description(client: TestClient) -> None:
    """OpenAPI requires one, and a route that has a body names the status of a slow one."""
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            assert all(one["description"] for one in operation["responses"].values()), path
            assert ("408" in operation["responses"]) == ("requestBody" in operation), path


def test_open_routes_are_documented_without_a_key(keyed: TestClient) -> None:
    """And are exactly those that are answered without one."""
    paths = keyed.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            is_open = operation.get("security") == []
            assert is_open == ("401" not in operation["responses"])
            called = path.replace("{name}", "x").replace("{model}", "x")
            if not is_open:
                assert keyed.request(method, called).status_code == 401, (method, path)
    opened = {
        path for path, methods in paths.items() for one in methods.values() if "security" in one
    }
    assert opened == {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
    for path in ("/", "/healthz", "/docs", "/openapi.json", "/page/page.js", "/docs/"):
        assert keyed.get(path).status_code == 200, path


@pytest.mark.parametrize("path", BY_PATH)
def test_errors_of_every_kind_have_the_shape_of_the_paths_clients(
    path: str, client: TestClient, keyed: TestClient
) -> None:
    """404 and 405 of the router and 401 of the middlewares: one client reads them all."""
    refused = client.delete(path)
    assert refused.status_code in (404, 405)
    assert shape_of(refused) == BY_PATH[path]
    unauthorized = keyed.post(path)
    assert unauthorized.status_code == 401
    assert shape_of(unauthorized) == BY_PATH[path]


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("Full."), 429), (RuntimeError("/secret 10.0.0.1"), 500)]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/tag"), ("GET", "/v1/config"), ("POST", "/hf"), ("GET", "/v2/health/ready")],
)
def test_errors_of_an_endpoint_have_the_same_shape(
    method: str, path: str, error: Exception, status: int
) -> None:
    """Also unexpected ones, which are answered and show nothing internal."""
    failing: Any = Failing(error)
    with TestClient(create_app(failing, demo_config())) as client:
        response = client.request(method, path, content=b"x" if method == "POST" else None)
    assert response.status_code == status
    assert shape_of(response) == BY_PATH.get(path, "own")
    assert "secret" not in response.text


def test_a_body_that_is_too_large_is_refused_in_the_same_shape() -> None:
    """413 is raised while a body is read, by whichever endpoint reads it."""
    limits = demo_config().limits.model_copy(update={"max_body_bytes": 10, "max_image_bytes": 10})
    config = demo_config().model_copy(update={"limits": limits})
    with TestClient(create_app(NoTagger(), config)) as client:  # type: ignore[arg-type]
        for path in ("/v1/tag", "/hf", "/v1/embeddings"):
            headers = {"Content-Type": "application/json"}
            response = client.post(path, content=b"x" * 100, headers=headers)
            assert (response.status_code, shape_of(response)) == (413, BY_PATH[path])


def small_app(*routes: ApiRoute) -> Application:
    table = RouteTable(routes)
    return Application(table, edge(table, Limits(), admission=Admission(Limits())))


def shouted(error: TaggerError, status: int) -> dict[str, Any]:
    return {"error": error.message.upper(), "status": status}


def test_a_route_carries_its_error_shape() -> None:
    """A new dialect has one thing to write: the shape of its collector."""
    routes = Routes(shouted)

    @routes.get("/loud")
    async def loud(_: Request) -> Response:
        raise Overloaded("Full.")

    client = TestClient(small_app(*routes.collected))
    assert client.get("/loud").json() == {"error": "FULL.", "status": 429}
    assert client.get("/loud/below").json()["status"] == 404
    assert client.put("/loud").json()["status"] == 405
    assert client.get("/").json()["error"]["code"] == "not_found"


def test_a_client_that_disconnects_is_not_an_error_of_the_service() -> None:
    """Starlette raises its own exception where a form or a stream is read."""
    routes = Routes()

    @routes.post("/x")
    async def endpoint(_: Request) -> Response:
        raise ClientDisconnect

    response = TestClient(small_app(*routes.collected)).post("/x")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


def test_a_prefix_may_be_the_beginning_of_a_path() -> None:
    """A service below `/v1` has its `/v1/tag` at `/v1/v1/tag`."""
    app = create_app(NoTagger(), demo_config())  # type: ignore[arg-type]
    with TestClient(app, root_path="/v1", follow_redirects=False) as client:
        assert client.get("/v1/healthz").status_code == 200
        assert client.get("/v1/v1/tag").status_code == 405
        assert shape_of(client.get("/v1/v2/nothing")) == "open_inference"
        assert client.get("/v1/docs/").headers["location"] == "http://testserver/v1/docs"


def test_the_document_adds_what_the_middlewares_answer() -> None:
    """A slow body and a missing key are documented by the table, not by each route."""

    async def endpoint(_: Request) -> Response:
        """Do something."""
        raise AssertionError

    operation = Operation("Something", request={"requestBody": {"content": {}}})
    route = ApiRoute("/x/{name}", endpoint, "POST", operation=operation)
    described = openapi_document([route], requires_keys=True)["paths"]["/x/{name}"]["post"]
    assert described["description"] == "Do something."
    assert [one["name"] for one in described["parameters"]] == ["name"]
    assert set(described["responses"]) == {"200", "401", "408"}
    assert route.error_shape is own_shape
