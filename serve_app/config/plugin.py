"""The `plugins.siglip` block: the plugin schema, key for key, with the spellings it also accepts.

Not here: what `auto` becomes (`hardware/precision.py` and the planner).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from serve_app.config.settings import Count, Settings
from serve_app.siglip.naflex import MAX_PATCHES, MIN_PATCHES
from serve_app.tagging.choices import SortBy

DEMO_MODEL = "demo"
DEMO_CHECKPOINT = Path(__file__).parents[1] / "demo" / "checkpoint"
MODEL_VARIANTS = {
    "base": "google/siglip-base-patch16-224",
    "so400m": "google/siglip-so400m-patch14-384",
    "base-v2": "google/siglip2-base-patch16-224",
    "large-v2": "google/siglip2-large-patch16-512",
    "so400m-v2": "google/siglip2-so400m-patch14-384",
    "giant-v2": "google/siglip2-giant-opt-patch16-384",
    "base-naflex": "google/siglip2-base-patch16-naflex",
}
"""The plugin's short names.

Source: the plugin's `configure()`. Its `plugin.toml` spells them `v2-base`, which is also accepted.
"""
PLUGIN_ALIASES = {
    "variant": "model",
    "model_variant": "model",
    "threshold": "confidence_threshold",
    "limit": "max_tags",
}


class SiglipPlugin(Settings):
    """The `plugins.siglip` block."""

    enabled: bool = True
    model: str = Field("google/siglip2-so400m-patch14-384", min_length=1)
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    confidence_threshold: float = Field(0.01, ge=0, le=1)
    max_tags: Count = 50
    max_num_patches: int = Field(256, ge=MIN_PATCHES, le=MAX_PATCHES)
    include_raw_scores: bool = False
    sort_by: SortBy = "confidence"

    @model_validator(mode="before")
    @classmethod
    def _accept_other_spellings(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        renamed: dict[str, Any] = {}
        for key, value in data.items():
            known = PLUGIN_ALIASES.get(str(key), str(key))
            if known in renamed:
                raise ValueError(
                    f"{key} says the same as another key of this block; "
                    f"keep one of them, best {known}"
                )
            renamed[known] = value
        if isinstance(renamed.get("model"), str):
            renamed["model"] = _hub_id(renamed["model"])
        return renamed

    @property
    def model_source(self) -> str:
        """The folder or hub id to load; the embedded checkpoint for `demo`."""
        return str(DEMO_CHECKPOINT) if self.model == DEMO_MODEL else self.model

    @property
    def model_shown(self) -> str:
        """The name that clients see: the hub id, or the name of a folder without its path."""
        path = Path(self.model)
        return path.name if path.is_absolute() or path.is_dir() else self.model

    @property
    def fixed_batch_size(self) -> int | None:
        """The explicit batch size; None for `auto`."""
        return None if self.batch_size == "auto" else self.batch_size


class Plugins(Settings):
    """The `plugins` block; this service has one plugin."""

    siglip: SiglipPlugin = SiglipPlugin()


def _hub_id(model: str) -> str:
    swapped = "-".join(reversed(model.split("-", 1))) if model.startswith("v2-") else model
    return MODEL_VARIANTS.get(swapped, model)
