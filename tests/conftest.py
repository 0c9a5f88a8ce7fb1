"""Fixtures for every test: tiny checkpoints and images.

The environment is set before anything imports Ray or the hub.
"""

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "token")  # of clusters that tests start by themselves
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# threads of torch that wait for each other, in the services too, leave the cores to other tests
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# no other run reads the tag banks of the tests
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="siglip-cache-")

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.config.service import ServiceConfig
from tests import tiny_checkpoints

torch.set_num_threads(1)  # more only wait for each other where several processes share the cores

# How long an example takes says nothing on a machine that does other things too.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Schedule the tests as `tests/parallel.py` says."""
    from tests.parallel import FromBothEnds  # needs pytest-xdist, which not every run has

    return FromBothEnds(config, log)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family to the folder of its tiny checkpoint, built once."""
    root = tmp_path_factory.mktemp("checkpoints")
    built = {}

    def folder(family: str) -> Path:
        if family not in built:
            built[family] = tiny_checkpoints.build(family, root / family)
        return built[family]

    return folder


@pytest.fixture(params=tiny_checkpoints.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each of the three families in turn."""
    return request.param


@pytest.fixture
def checkpoint_folder(tiny: Callable[[str], Path], family: str) -> Path:
    """A tiny checkpoint of each family in turn; not to be changed."""
    return tiny(family)


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an RGB picture of noise."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return a picture's bytes in a format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def in_float32(config: ServiceConfig) -> ServiceConfig:
    """Return a configuration whose embeddings do not depend on what else is in a batch, as those in
    bfloat16 do on some CPUs.
    """
    plugin = config.siglip.model_copy(update={"dtype": "float32"})
    return config.model_copy(
        update={"plugins": config.plugins.model_copy(update={"siglip": plugin})}
    )
