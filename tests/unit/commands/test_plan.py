"""`siglip-serve plan` as it is typed."""

import json
from pathlib import Path

import pytest
import yaml

from bench.plan_table import table
from serve_app.cli import main

ROOT = Path(__file__).parents[3]
CLASSES = ("cpu", "t4", "l4", "a100", "h100")


@pytest.mark.parametrize("name", CLASSES)
def test_each_hardware_class_has_a_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped configurations plan without a word of advice, on the device that they are for."""
    assert main(["plan", str(ROOT / "configs" / f"{name}.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["device"] == ("cpu" if name == "cpu" else "cuda")
    assert plan["advice"] == []
    assert plan["deployments"]["preprocessor"]["max_replicas"] >= 1


def test_the_table_has_a_reason_for_each_number(capsys: pytest.CaptureFixture[str]) -> None:
    """Values, reasons, and the seed table beside the computed batch."""
    assert main(["plan", str(ROOT / "configs" / "default.yaml"), "--hardware", "l4x2"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "2 × L4",
        "bfloat16",
        "seed table says 16 to 32",
        "image_encoder.num_gpus",
        "1 to 4",
        "seed table asks for 6 GB",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hardware", "l5"], "known are"),
        (["--hardware", "gpu1gb"], "google/siglip2-base-patch16-512 fits"),
        (["--cluster", "http://127.0.0.1:9"], "is the cluster running?"),
    ],
)
def test_what_cannot_be_planned(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error, status 1."""
    assert main(["plan", str(ROOT / "configs" / "default.yaml"), *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1


def test_wrong_scales_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bounds the wrong way round, two ways to say one number, a GPU for what has no use of it."""
    for serving, said in (
        ({"image_encoder": {"min_replicas": 3, "max_replicas": 2}}, "less than min_replicas"),
        ({"image_encoder": {"num_replicas": 3, "max_replicas": 4}}, "keep one"),
        ({"preprocessor": {"num_gpus": 1}}, "leave it out"),
    ):
        path = tmp_path / "config.yaml"
        path.write_text(
            yaml.safe_dump(
                {"labels": ["cat"], "plugins": {"siglip": {"model": "demo"}}, "serving": serving}
            )
        )
        assert main(["plan", str(path), "--hardware", "cpu4"]) == 1
        assert said in capsys.readouterr().err


def test_the_page_of_capacity_is_what_the_planner_says_now() -> None:
    """docs/capacity.md is generated; run `python -m bench.capacity_table > docs/capacity.md`."""
    from bench import capacity_table

    assert (ROOT / "docs" / "capacity.md").read_text() == capacity_table.table() + "\n"


def test_the_page_of_plans_is_what_the_planner_says() -> None:
    """docs/plans.md is generated; run `python -m bench.plan_table > docs/plans.md`."""
    assert (ROOT / "docs" / "plans.md").read_text() == table() + "\n"
