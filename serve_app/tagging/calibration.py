"""Calibrations: for every tag, a line from its logit to one that is comparable between tags.

Not here: the fitting (`fitting.py`), measuring what it gained (`evaluation.py`).
"""

import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError

from serve_app.errors import ConfigError
from serve_app.tagging.lined_yaml import parse_lined_yaml
from serve_app.untrusted.bounded_files import read_text
from serve_app.untrusted.nulls import NullIsDefault
from serve_app.untrusted.problems import problem_sentence
from serve_app.untrusted.yaml_files import LOADER, MAX_YAML_BYTES

Probability = Annotated[float, Field(ge=0, le=1)]
SIGNIFICANT_DIGITS = 6
"""Significant digits, not decimals: a threshold of 0.0000004 is common, and 0 passes every tag."""
MAX_LINE = 1e4
"""Limit on scales and offsets, far above any logit."""
_HEADER = (
    "# Written by `siglip-serve calibrate`; name it as `calibration` of its vocabulary. A tag's "
    "calibrated logit is\n"
    "# scale × logit + offset; tags that are not listed have the pooled line. Fitted again when "
    "the checkpoint or the\n"
    "# prompt templates change.\n"
)


class Fit(NullIsDefault):
    """One tag's line: calibrated logit = `scale` × logit + `offset`.

    Attributes:
        scale: The line's slope.
        offset: The line's offset.
        threshold: Minimum calibrated confidence of this tag, in [0, 1]; None for the general one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = Field(1.0, gt=0, le=MAX_LINE)
    offset: float = Field(0.0, ge=-MAX_LINE, le=MAX_LINE)
    threshold: Probability | None = None


class Calibration(NullIsDefault):
    """A calibration file.

    Attributes:
        method: `platt` from labelled images, `background` from unlabelled ones.
        checkpoint: Fingerprint of the checkpoint whose logits were fitted.
        prompt_templates: Templates of the labels.
        images: Number of images.
        threshold: Minimum calibrated confidence, in [0, 1], of tags without a threshold.
        pooled: The line of tags without a line.
        tags: Lines by label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["platt", "background"]
    checkpoint: str
    prompt_templates: tuple[str, ...]
    images: int = Field(ge=1)
    threshold: Probability
    pooled: Fit = Fit()
    tags: dict[str, Fit] = {}

    def check_checkpoint(self, fingerprint: str, vocabulary: str) -> None:
        """Raise `ConfigError` if this was fitted on another checkpoint's logits."""
        if self.checkpoint != fingerprint:
            raise ConfigError(
                f"vocabulary {vocabulary}: its calibration was fitted for the checkpoint with "
                f"fingerprint {self.checkpoint}, "
                f"and this one has {fingerprint}; run siglip-serve calibrate again."
            )


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ConfigError: One line for each problem, with the file's line and the reason.
    """
    # PyYAML wrote it, and leaves a fingerprint such as 12e4 without quotes
    content = parse_lined_yaml(read_text(path, MAX_YAML_BYTES), path, loader_class=LOADER)
    if not isinstance(content.data, dict):
        raise ConfigError(f"{path}: holds no calibration; siglip-serve calibrate writes one.")
    try:
        return Calibration.model_validate(content.data)
    except ValidationError as error:
        problems = [
            f"{path}:{content.line_of(problem['loc'])}: {_sentence(problem)}"
            for problem in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from error


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file; the same calibration always gives the same bytes."""
    data = calibration.model_dump(mode="json", exclude={"tags"})
    data["pooled"] = _short(calibration.pooled)
    data["threshold"] = _rounded(calibration.threshold)
    head = _dump(data, default_flow_style=False)
    lines = [
        _dump({label: _short(fit)}, default_flow_style=None)
        for label, fit in calibration.tags.items()
    ]
    tags = "tags:\n" + textwrap.indent("".join(lines), "  ") if lines else "tags: {}\n"
    path.write_text(_HEADER + head + tags, encoding="utf-8")


def _dump(data: dict[str, Any], default_flow_style: bool | None) -> str:
    return str(
        yaml.safe_dump(
            data,
            sort_keys=False,
            allow_unicode=True,
            width=10_000,
            default_flow_style=default_flow_style,
        )
    )


def _short(fit: Fit) -> dict[str, float]:
    return {key: _rounded(value) for key, value in fit.model_dump(exclude_none=True).items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _sentence(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    known = Calibration.model_fields if len(problem["loc"]) == 1 else Fit.model_fields
    return problem_sentence(problem, where, known)
