"""`tag`, `score`, `vocab`, `calibrate`, `evaluate` and `check` as their user runs them, on the demo
checkpoint.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from serve_app.cli import main
from serve_app.demo import scenes
from serve_app.demo.settings import demo_labels

ROOT = Path(__file__).parents[3]
SHAPES = ROOT / "configs" / "vocabularies" / "shapes.yaml"
SCENES = 400
LOOKED_AT = {label for label in demo_labels() if not label.startswith("white ")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn scenes with labels.csv, in which nobody has looked at combinations with
    white.
    """
    folder = tmp_path_factory.mktemp("scenes")
    known = LOOKED_AT
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "labels"])
        for number, scene in enumerate(scenes.sample_scenes(77, SCENES, scenes.COMBINATIONS)):
            scenes.draw(scene, 160, 120).save(folder / f"{number:03}.jpg", quality=90)
            table.writerow([f"{number:03}.jpg", "|".join(sorted(scenes.labels_in(scene) & known))])
    return folder


def write_config(folder: Path, **more: object) -> Path:
    path = folder / "config.yaml"
    plugin = {"model": "demo", "confidence_threshold": 0.01, "max_tags": 20}
    path.write_text(yaml.safe_dump({"labels": str(SHAPES), "plugins": {"siglip": plugin}} | more))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    return captured.err if status == 1 and not captured.out else captured.out


def test_stored_embeddings_are_tagged_as_the_pictures_were(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """float16 on disk, the same labels again, and another vocabulary without a picture."""
    samples = sorted((ROOT / "serve_app/demo/samples").glob("*.jpg"))
    stored = tmp_path / "e.safetensors"
    tagged = run(capsys, "tag", *samples, "--json", "--save-embeddings", stored)
    assert load_file(stored)["image_embeds"].dtype == np.float16
    again = run(capsys, "score", stored)
    first, second = ([json.loads(line) for line in text.splitlines()] for text in (tagged, again))
    assert (
        [line["file"] for line in first]
        == [line["file"] for line in second]
        == [str(sample) for sample in samples]
    )
    for left, right in zip(first, second, strict=True):
        assert [tag["label"] for tag in left["tags"]] == [tag["label"] for tag in right["tags"]]
    own = json.loads(
        run(capsys, "score", stored, "--labels", "red,blue", "--threshold", "0").splitlines()[0]
    )
    assert {tag["label"] for tag in own["tags"]} == {"red", "blue"}


def test_embeddings_that_are_not_this_checkpoints_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: "object"
) -> None:
    """Of another checkpoint, of another width, or no embeddings at all."""
    stored = tmp_path / "e.safetensors"
    run(capsys, "tag", ROOT / "serve_app/demo/samples/red-circle.jpg", "--save-embeddings", stored)
    other = write_config(
        tmp_path,
        plugins={"siglip": {"model": str(tiny("siglip"))}},
        labels=["cat"],
        prompt_templates=["{label}"],
    )  # type: ignore[operator]
    assert "different checkpoints" in run(capsys, "score", stored, "--config", other, status=1)
    np.save(tmp_path / "x.npy", np.ones((2, 5), np.float32))
    assert "n×" in run(capsys, "score", tmp_path / "x.npy", status=1)
    (tmp_path / "y.safetensors").write_text("hello")
    assert "cannot be read" in run(capsys, "score", tmp_path / "y.safetensors", status=1)


def test_vocabularies_are_built_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The second time nothing is encoded; a label more costs one prompt; nearly equal tags are
    listed.
    """
    config = write_config(
        tmp_path, labels=["red", "red circle", "blue"], tag_banks=str(tmp_path / "banks")
    )
    assert "encoded now" in (first := run(capsys, "vocab", "build", config))
    assert first.splitlines()[1].split()[1:4] == ["3", "9", "9"]
    assert run(capsys, "vocab", "build", config).splitlines()[1].split()[1:4] == ["3", "9", "0"]
    config = write_config(
        tmp_path, labels=["red", "green", "red circle", "blue"], tag_banks=str(tmp_path / "banks")
    )
    grown = run(capsys, "vocab", "build", config, "--near", "-1")
    assert grown.splitlines()[1].split()[1:4] == ["4", "10", "1"]
    assert grown.count("nearly the same to the model") == 6


def test_vocabularies_are_shown_and_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Categories, the tags of one, and what a change costs."""
    assert "colour and shape" in run(capsys, "vocab", "show", SHAPES)
    assert "red circle" in run(capsys, "vocab", "show", SHAPES, "--category", "colour and shape")
    assert "it has colour" in run(capsys, "vocab", "show", SHAPES, "--category", "x", status=1)
    (tmp_path / "a.txt").write_text("cat\ndog\n")
    (tmp_path / "b.yaml").write_text("[cat, {label: dog, prompt: a dog}, bird]")
    assert run(capsys, "vocab", "diff", tmp_path / "a.txt", tmp_path / "a.txt").endswith(
        "0 of 8 prompts have to be encoded\n"
    )
    changed = run(capsys, "vocab", "diff", tmp_path / "a.txt", tmp_path / "b.yaml", status=1)
    assert changed.splitlines() == [
        "~ dog: prompt None → 'a dog'",
        "+ bird",
        "2 of 9 prompts have to be encoded",
    ]


def test_calibration_gains_on_the_demos_scenes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path
) -> None:
    """At the shipped thresholds F1 is clearly above the raw one at the schema's default threshold,
    on scenes that the fit has not seen, and the calibration error at least halved; the report has
    both pictures, and the same run gives the same file.
    """
    calibration = tmp_path / "calibration.yaml"
    report = tmp_path / "report"
    config = write_config(tmp_path)
    shown = run(
        capsys, "calibrate", pictures, "--config", config, "--out", calibration, "--report", report
    )
    rows = {
        line.split("  ")[0]: line.split()[-7:]
        for line in shown.splitlines()
        if line.startswith(("raw", "calibrated"))
    }
    before = rows["raw at 0.01"]
    after = rows["calibrated"]
    assert float(after[3]) > float(before[3]) + 0.05
    assert float(after[5]) <= float(before[5]) / 2
    assert {path.name for path in report.iterdir()} == {
        "report.md",
        "reliability.png",
        "precision-recall.png",
    }
    for picture in report.glob("*.png"):
        assert Image.open(picture).size > (600, 400)
    again = tmp_path / "again.yaml"
    run(capsys, "calibrate", pictures, "--config", config, "--out", again)
    assert again.read_bytes() == calibration.read_bytes()

    config = write_config(tmp_path, calibration=str(calibration))
    measured = json.loads(run(capsys, "evaluate", pictures, "--config", config, "--json"))
    assert set(measured) == {"sigmoid", "calibrated"}
    assert measured["calibrated"]["micro"]["f1"] > measured["sigmoid"]["micro"]["f1"] + 0.05
    assert {tag["label"] for tag in measured["sigmoid"]["tags"]} == LOOKED_AT
    answer = json.loads(run(capsys, "tag", pictures / "000.jpg", "--config", config, "--json"))
    assert {tag["label"] for tag in answer["tags"]} <= set(demo_labels())


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_and_float32_runs_are_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path, quantization: str
) -> None:
    """The same labelled scenes through `evaluate`: what quantisation costs is a hundredth of F1 and
    of mAP at most.
    """
    found = {}
    for kind in ("none", quantization):
        plugin = {
            "model": "demo",
            "confidence_threshold": 0.5,
            "quantization": kind,
            "dtype": "float32",
        }
        config = write_config(tmp_path, plugins={"siglip": plugin})
        found[kind] = json.loads(run(capsys, "evaluate", pictures, "--config", config, "--json"))[
            "sigmoid"
        ]
    exact = found["none"]
    rough = found[quantization]
    assert rough["micro"]["f1"] > exact["micro"]["f1"] - 0.01
    assert rough["mean_average_precision"] > exact["mean_average_precision"] - 0.01
    assert rough != exact  # it was quantised


def test_calibration_without_labels(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path
) -> None:
    """Of images alone: about the wanted number of tags, a page with a picture, and a file that
    raises F1 too.
    """
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for path in pictures.glob("*.jpg"):
        (unlabelled / path.name).write_bytes(path.read_bytes())
    (unlabelled / "broken.jpg").write_bytes(b"broken")
    calibration = tmp_path / "calibration.yaml"
    config = write_config(tmp_path)
    arguments = (
        "--config",
        config,
        "--out",
        calibration,
        "--tags-per-image",
        "5.5",
        "--report",
        tmp_path / "report",
    )
    assert main([str(a) for a in ("calibrate", unlabelled, *arguments)]) == 0
    captured = capsys.readouterr()
    assert "skipped" in captured.err
    assert "5.50 tags per image" in captured.out
    assert (tmp_path / "report" / "tags-per-image.png").is_file()
    measured = json.loads(
        run(
            capsys,
            "evaluate",
            pictures,
            "--config",
            write_config(tmp_path, calibration=str(calibration)),
            "--json",
        )
    )
    assert measured["calibrated"]["micro"]["f1"] > measured["sigmoid"]["micro"]["f1"] + 0.05


def test_raw_scores_are_shown_where_the_configuration_asks_for_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In JSON lines of `tag` and `score` and in the table; the model's logit, and not otherwise."""
    sample = ROOT / "serve_app/demo/samples/red-circle.jpg"
    stored = tmp_path / "e.safetensors"
    plugin = {"model": "demo", "confidence_threshold": 0.01, "include_raw_scores": True}
    config = write_config(tmp_path, plugins={"siglip": plugin})
    (line,) = run(
        capsys, "tag", sample, "--json", "--config", config, "--save-embeddings", stored
    ).splitlines()
    (again,) = run(capsys, "score", stored, "--config", config).splitlines()
    for tags in (json.loads(line)["tags"], json.loads(again)["tags"]):
        assert tags
        for tag in tags:
            assert tag["confidence"] == pytest.approx(1 / (1 + np.exp(-tag["raw_score"])), rel=1e-4)
    assert "raw score" in run(capsys, "tag", sample, "--config", config)
    assert "raw_score" not in run(capsys, "tag", sample, "--json")
    assert "raw score" not in run(capsys, "tag", sample)


def test_a_confidence_of_the_table_is_a_threshold_that_keeps_its_tag(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It is rounded down to three digits."""
    sample = ROOT / "serve_app/demo/samples/red-circle.jpg"
    config = write_config(tmp_path)
    for row in run(
        capsys, "tag", sample, "--config", config, "--threshold", "0.0000001"
    ).splitlines()[1:]:
        cells = row.split("  ")
        confidence = next(cell.strip() for cell in reversed(cells) if cell.strip())
        label = [cell.strip() for cell in cells if cell.strip()][-2]
        assert label in run(capsys, "tag", sample, "--config", config, "--threshold", confidence)


def test_evaluate_measures_what_the_configuration_gives(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path
) -> None:
    """`max_tags`, `min_tags`, filters, and a score that the configuration names, each by what it
    does to the counts.
    """
    plain = json.loads(
        run(capsys, "evaluate", pictures, "--config", write_config(tmp_path), "--json")
    )["sigmoid"]
    one = write_config(
        tmp_path, plugins={"siglip": {"model": "demo", "confidence_threshold": 0.01, "max_tags": 1}}
    )
    single = json.loads(run(capsys, "evaluate", pictures, "--config", one, "--json"))["sigmoid"]
    assert plain["tags_per_image"] > 2
    assert single["tags_per_image"] <= 1
    assert single["micro"]["recall"] < plain["micro"]["recall"]
    assert single["mean_average_precision"] == plain["mean_average_precision"]
    full = write_config(tmp_path, selection={"min_tags": 20})
    assert (
        json.loads(run(capsys, "evaluate", pictures, "--config", full, "--json"))["sigmoid"][
            "micro"
        ]["recall"]
        > plain["micro"]["recall"]
    )
    filtered = write_config(
        tmp_path, selection={"include_labels": ["red", "blue"], "score": "margin"}
    )
    measured = json.loads(run(capsys, "evaluate", pictures, "--config", filtered, "--json"))
    assert list(measured) == ["sigmoid", "margin"]
    assert [tag["label"] for tag in measured["margin"]["tags"]] == ["red", "blue"]
    assert "selection filters out" in run(capsys, "evaluate", pictures, "--config", filtered)


def test_a_calibration_of_another_checkpoint_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path
) -> None:
    """With both fingerprints and what to do."""
    calibration = tmp_path / "calibration.yaml"
    run(capsys, "calibrate", pictures, "--config", write_config(tmp_path), "--out", calibration)
    lines = calibration.read_text().splitlines()
    calibration.write_text(
        "\n".join(
            "checkpoint: '0123456789abcdef'" if line.startswith("checkpoint:") else line
            for line in lines
        )
    )
    config = write_config(tmp_path, calibration=str(calibration))
    assert "run siglip-serve calibrate again" in run(
        capsys, "tag", pictures / "000.jpg", "--config", config, status=1
    )


def test_check_names_the_line_of_a_label_that_would_be_cut(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The demo reads 16 tokens; the file and the line are told before anything is started."""
    (tmp_path / "words.txt").write_text(
        "# two\nred\nan extraordinarily long description of nothing in particular\n"
    )
    said = run(capsys, "check", write_config(tmp_path, labels="words.txt"), status=1)
    assert f"{tmp_path}/words.txt:3:" in said
    assert "reads 16" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluate", "nowhere"), "is not a folder"),
        (("evaluate", str(ROOT / "serve_app/demo/samples")), "have no labels"),
        (
            ("evaluate", str(ROOT / "serve_app/demo/samples"), "--vocabulary", "x"),
            "there is no vocabulary 'x'",
        ),
        (("calibrate", str(ROOT / "serve_app/demo/samples")), "at least 20"),
        (("vocab", "show", "nowhere.yaml"), "is not a file"),
        (("score", "nowhere.npy"), "cannot be read"),
    ],
)
def test_commands_say_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """One sentence and exit status 1."""
    assert main(list(arguments)) == 1
    assert said in capsys.readouterr().err
