"""Every value of the plugin schema's enumerations, applied: asked for in the YAML, read back from
the live model over HTTP.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import ConfigError
from serve_app.hardware.detection import cpu_has_bfloat16
from serve_app.pipeline.local_tagger import LocalTagger
from tests.conftest import encoded, random_picture

AUTO_DTYPE = "bfloat16" if cpu_has_bfloat16() else "float32"


def config_for(folder: Path, **plugin: Any) -> ServiceConfig:
    siglip = {"model": str(folder), "device": "cpu", "confidence_threshold": 0} | plugin
    return parse_config({"labels": ["cat", "dog"], "plugins": {"siglip": siglip}})


def card_of(config: ServiceConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `GET /v1/model` says, and the tags of one picture."""
    with TestClient(create_app(LocalTagger(config), config)) as client:
        tagged = client.post("/v1/tag", content=encoded(random_picture(90, 60)))
        return client.get("/v1/model").json(), tagged.json()


@pytest.mark.parametrize("family", ["siglip", "siglip2-naflex"])
@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16"])
def test_every_value_is_applied(
    tiny: Callable[[str], Path], family: str, dtype: str, attention: str, quantization: str
) -> None:
    """What was asked for is what the loaded model runs as; `auto` is what this machine does best;
    tags come out.
    """
    card, tagged = card_of(
        config_for(tiny(family), dtype=dtype, attention=attention, quantization=quantization)
    )
    assert card["dtype"] == (AUTO_DTYPE if dtype == "auto" else dtype)
    assert card["attention"] == ("sdpa" if attention == "auto" else attention)
    assert card["quantization"] == quantization
    assert card["device"] == "cpu"
    assert {tag["label"] for tag in tagged["tags"]} == {"cat", "dog"}


@pytest.mark.parametrize("max_num_patches", [64, 100, 256, 512, 1024])
def test_naflex_patches(tiny: Callable[[str], Path], max_num_patches: int) -> None:
    """From 64 to 1,024 patches, applied: a large picture is cut into no more, and into nearly as
    many.
    """
    config = config_for(tiny("siglip2-naflex"), max_num_patches=max_num_patches)
    card, tagged = card_of(config)
    assert card["max_num_patches"] == max_num_patches
    assert len(tagged["tags"]) == 2
    rows, columns = LocalTagger(config).preparer.prepare(
        encoded(random_picture(900, 700))
    ).spatial_shape or (0, 0)
    assert 0.8 * max_num_patches <= rows * columns <= max_num_patches


@pytest.mark.parametrize("family", ["siglip", "siglip2", "siglip2-naflex"])
def test_flash_attention_is_refused_where_it_cannot_work(
    tiny: Callable[[str], Path], family: str
) -> None:
    """On a CPU for every family, and for NaFlex because of the family; the message says what to
    use.
    """
    reason = "NaFlex" if family == "siglip2-naflex" else "CUDA"
    with pytest.raises(ConfigError, match=f"flash_attention_2 .*{reason}.*use auto or sdpa"):
        LocalTagger(config_for(tiny(family), attention="flash_attention_2"))


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"attention": "flash"}, "attention"),
        ({"quantization": "2bit"}, "quantization"),
        ({"max_num_patches": 32}, "max_num_patches"),
        ({"max_num_patches": 2_048}, "max_num_patches"),
        ({"device": "tpu"}, "device"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_other_values_are_refused_by_name(
    tiny: Callable[[str], Path], plugin: dict[str, Any], said: str
) -> None:
    """The key stands in the message."""
    with pytest.raises(ConfigError, match=said):
        config_for(tiny("siglip"), **plugin)
