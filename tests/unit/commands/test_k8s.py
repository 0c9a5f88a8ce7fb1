"""`siglip-serve k8s` and `siglip-serve fetch` as they are typed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.cli import main
from serve_app.config.plugin import DEMO_CHECKPOINT
from serve_app.siglip import hub_download
from tests.manifests.kube import ROOT, kustomized

Typed = Callable[..., tuple[int, str, str]]
L4 = ROOT / "k8s/overlays/l4/config.yaml"
PODS = {"label_selector": {"siglip-serve/pods": "cpu"}}
CONFIG: dict[str, Any] = {
    "name": "tags",
    "hardware": "l4x2+24cpu",
    "revision": "abc123",
    "labels": ["cat", "dog"],
    "access": {"api_keys": "env"},
    "plugins": {"siglip": {"model": "google/siglip2-so400m-patch16-384"}},
    "serving": {"preprocessor": {"min_replicas": 2} | PODS, "postprocessor": PODS},
}


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Return a function that runs a command: its status, and what it printed and what it said
    besides.
    """

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(one) for one in arguments])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that asks for nothing unusual."""
    return written(tmp_path / "config.yaml", CONFIG)


def written(path: Path, content: Any) -> Path:
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8"
    )
    return path


def with_keys(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with some keys changed, `a__b` for b in a."""
    made = copy.deepcopy(content)
    for path, value in changes.items():
        *way, last = path.split("__")
        at = made
        for key in way:
            at = at.setdefault(key, {})
        at[last] = value
    return made


def test_the_tables_show_pods_and_replicas(typed: Typed, config: Path) -> None:
    """Hardware, both groups, each deployment of the application, and images a second; nothing to
    advise.
    """
    status, out, err = typed("k8s", "plan", "--config", config)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["hardware:", "l4x2+24cpu"]
    assert ["gpu", "1", "to", "2", "3", "11", "GiB", "1", "×", "L4"] in lines
    assert next(line[:4] for line in lines if line[:1] == ["cpu"]) == ["cpu", "2", "3", "5"]
    assert [line[1] for line in lines if line[:1] == ["tags"]] == [
        "image_encoder",
        "text_encoder",
        "preprocessor",
        "postprocessor",
    ]
    assert "images/s with all pods, computed from data sheets, not measured" in out
    assert "advice" not in out
    assert "$" not in out


def test_one_json_object(typed: Typed, config: Path) -> None:
    """The groups as data, with what the tables say and nothing beside the object."""
    status, out, err = typed("k8s", "plan", "--config", config, "--json")
    told = json.loads(out)
    assert (status, err) == (0, "")
    assert told.keys() == {"hardware", "groups", "images_per_second", "advice"}
    assert [
        (group["name"], group["least"], group["most"], group["gpus"], group["accelerator"])
        for group in told["groups"]
    ] == [
        ("cpu", 2, 2, 0, None),
        ("gpu", 1, 2, 1, "L4"),
    ]


def test_what_a_million_images_cost(typed: Typed, config: Path) -> None:
    """Two cards at 0.9 dollars an hour are 1.8 dollars for 3,600 × the rate; without a GPU there is
    no such price.
    """
    _, out, _ = typed("k8s", "plan", "--config", config, "--gpu-price", 0.9, "--json")
    told = json.loads(out)
    cost = 2 * 0.9 / (3600 * told["images_per_second"]) * 1_000_000
    assert told["usd_per_million_images"] == pytest.approx(cost)
    _, out, _ = typed("k8s", "plan", "--config", config, "--gpu-price", 0.9)
    assert f"about ${cost:.2f} for a million images at $0.9 per GPU pod and hour" in out
    on_cpu = written(config, with_keys(CONFIG, hardware="cpu16"))
    _, out, _ = typed("k8s", "plan", "--config", on_cpu, "--gpu-price", 0.9, "--json")
    assert "usd_per_million_images" not in json.loads(out)


def test_the_rate_is_what_is_decoded_too(typed: Typed, config: Path) -> None:
    """Base takes some 1,400 images/s of an L4; two Preprocessors of 2 CPUs decode 2 × 2 / 0.015 s =
    267, and that is what is paid for.
    """
    serving = {
        "preprocessor": {"num_cpus": 2, "num_replicas": 2, "min_replicas": 2} | PODS,
        "postprocessor": PODS,
    }
    written(
        config,
        with_keys(
            CONFIG, plugins__siglip__model="google/siglip2-base-patch16-224", serving=serving
        ),
    )
    status, out, _ = typed("k8s", "plan", "--config", config)
    assert status == 0
    assert "about 267 images/s" in out
    assert "advice: decoding limits tags to 267 of " in out


def test_gpus_instead_of_the_hardware(typed: Typed, config: Path) -> None:
    """The hardware that it prints is what to write: with it the plan is the same, without --gpu."""
    _, out, _ = typed("k8s", "plan", "--config", config, "--gpu", "t4", "--max-gpus", 5, "--json")
    told = json.loads(out)
    assert told["hardware"].startswith("t4x5+")
    assert [group["most"] for group in told["groups"]][1] == 5
    written(config, with_keys(CONFIG, hardware=told["hardware"]))
    _, again, _ = typed("k8s", "plan", "--config", config, "--json")
    assert json.loads(again) == told
    _, one, _ = typed("k8s", "plan", "--config", config, "--gpu", "t4", "--json")
    assert json.loads(one)["hardware"].startswith("t4x1+")


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"revision": None},
            "google/siglip2-so400m-patch16-384 has no revision; "
            "`siglip-serve fetch google/siglip2-so400m-patch16-384`",
        ),
        ({"access": {}}, "tags requires no API key"),
        (
            {"serving__preprocessor": PODS},
            "tags may run on a single Preprocessor, and an outage follows if it fails",
        ),
        (
            {"serving__postprocessor": {}},
            "postprocessor of tags may run in GPU pods and take the CPUs of the encoders; "
            "set label_selector",
        ),
        (
            {"serving__port": 9000},
            "serving.port is 9000, "
            "but the pods, the Service and the policies of k8s/base open 8000",
        ),
        (
            {"serving__ingress": "python"},
            "serving.ingress is python, but the pods of k8s/base start HAProxy",
        ),
    ],
)
def test_advice(changes: dict[str, Any], advice: str, typed: Typed, config: Path) -> None:
    """One line for each thing that will be regretted, as a line and in the object."""
    written(config, with_keys(CONFIG, **changes))
    _, out, _ = typed("k8s", "plan", "--config", config)
    (line,) = (line for line in out.splitlines() if line.startswith("advice: "))
    assert line.startswith(f"advice: {advice}")
    _, out, _ = typed("k8s", "plan", "--config", config, "--json")
    assert [f"advice: {one}" for one in json.loads(out)["advice"]] == [line]


def test_cpu_pods_need_no_selector(typed: Typed, config: Path) -> None:
    """There are no GPU pods that a deployment could stray into."""
    small = {"siglip": {"model": "google/siglip2-base-patch16-224"}}
    written(
        config,
        with_keys(
            CONFIG, hardware="cpu16", plugins=small, serving={"preprocessor": {"min_replicas": 2}}
        ),
    )
    assert "advice" not in typed("k8s", "plan", "--config", config)[1]


def test_rendering_advises_on_what_the_base_cannot(typed: Typed, config: Path) -> None:
    """On standard error, so that the patch can be piped on."""
    written(config, with_keys(CONFIG, serving__port=9000, serving__ingress="python"))
    status, out, err = typed("k8s", "render", "--config", config)
    assert status == 0
    assert "advice" not in out
    assert [line.split(" is ")[0] for line in err.splitlines()] == [
        "advice: serving.port",
        "advice: serving.ingress",
    ]


def test_rendering_prints_the_patch_and_writes_it(
    typed: Typed, config: Path, tmp_path: Path
) -> None:
    """The same text on standard output and in a file, and the file's name on standard error
    only.
    """
    status, printed, err = typed("k8s", "render", "--config", config)
    assert (status, err) == (0, "")
    assert yaml.safe_load(printed)[0]["path"] == "/spec/serveConfigV2"
    out = tmp_path / "service.yaml"
    assert typed("k8s", "render", "--config", config, "--out", out) == (
        0,
        "",
        f"written: {out}\n",
    )
    assert out.read_text(encoding="utf-8") == printed
    serve_config = typed("render", config)[1]
    assert yaml.safe_load(printed)[0]["value"] == serve_config


def test_a_large_vocabulary_needs_the_servers_apply(typed: Typed, config: Path) -> None:
    """`kubectl apply` keeps the object in an annotation, of which there may be 256 KiB: bytes
    count, and not what JSON escapes.

    3,000 labels of 80 Chinese characters are 720 kB; 800 are 192 kB, and fit although each
    character has six bytes in ASCII JSON.
    """
    for labels, advised in ((3000, True), (800, False)):
        written(config, with_keys(CONFIG, labels=[f"{'猫' * 76}{at:04d}" for at in range(labels)]))
        status, _, err = typed("k8s", "render", "--config", config)
        assert status == 0
        assert ("use kubectl apply --server-side" in err) == advised


def running_of(typed: Typed, config: Path, tmp_path: Path) -> Path:
    """The l4 overlay as it runs, with our configuration in it, as `kubectl get -o yaml` shows
    it.
    """
    (manifest,) = (one for one in kustomized("k8s/overlays/l4") if one["kind"] == "RayService")
    from serve_app.kuberay.patch import apply_patch

    manifest = apply_patch(manifest, yaml.safe_load(typed("k8s", "render", "--config", config)[1]))
    return written(tmp_path / "running.yaml", manifest | {"status": {"conditions": []}})


def test_against_what_runs(typed: Typed, config: Path, tmp_path: Path) -> None:
    """Nothing, then a live change, then a model: each with what it does, in words and as data."""
    running = running_of(typed, config, tmp_path)
    status, out, err = typed("k8s", "plan", "--config", config, "--against", running)
    assert (status, err) == (0, "")
    assert out.rstrip().endswith("no difference from the running RayService")
    written(config, with_keys(CONFIG, labels=["bird"]))
    _, out, _ = typed("k8s", "plan", "--config", config, "--against", running)
    assert out.rstrip().splitlines()[-1].split("  ")[0] == "tags: Postprocessor.user_config"
    written(config, with_keys(CONFIG, plugins__siglip__model="google/siglip2-base-patch16-224"))
    _, out, _ = typed("k8s", "plan", "--config", config, "--against", running)
    line = next(
        line
        for line in out.splitlines()
        if line.startswith("worker group gpu.template.spec.initContainers[0].env[0].value ")
    )
    assert line.split(None, 3)[3].split("  ")[0] == "new cluster"
    assert line.rstrip().endswith(
        "a second cluster beside the first, with all its GPUs, until it serves"
    )
    _, out, _ = typed("k8s", "plan", "--config", config, "--against", running, "--json")
    changes = json.loads(out)["changes"]
    assert {one["effect"] for one in changes} == {"new cluster"}
    assert {*changes[0]} == {"where", "effect", "why"}


def test_against_with_a_manifest(typed: Typed, config: Path, tmp_path: Path) -> None:
    """Everything that will be applied is compared, what is not of the configuration too; lists and
    other objects around are passed over.
    """
    running = running_of(typed, config, tmp_path)
    manifest = yaml.safe_load(running.read_text(encoding="utf-8"))
    manifest["spec"]["rayClusterConfig"]["rayVersion"] = "2.61.0"
    manifest["metadata"]["labels"]["[/team]"] = "photos"  # as rich marks the end of a style
    wanted = tmp_path / "wanted.yaml"
    written(
        wanted,
        "---\n"
        + yaml.safe_dump_all([{"kind": "Namespace", "metadata": {"name": "siglip"}}, manifest]),
    )
    listed = tmp_path / "listed.yaml"
    written(
        listed,
        {
            "kind": "List",
            "items": [{"kind": "Secret"}, yaml.safe_load(running.read_text(encoding="utf-8"))],
        },
    )
    for before in (running, listed):
        _, out, _ = typed(
            "k8s", "plan", "--config", config, "--against", before, "--manifest", wanted, "--json"
        )
        assert [(one["where"], one["effect"]) for one in json.loads(out)["changes"]] == [
            ("rayClusterConfig.rayVersion", "new cluster"),
            ("metadata.labels.[/team]", "in place"),
        ]
        _, out, _ = typed(
            "k8s", "plan", "--config", config, "--against", before, "--manifest", wanted
        )
        assert "metadata.labels.[/team]" in out


def test_a_configuration_of_other_groups_needs_the_manifest(
    typed: Typed, config: Path, tmp_path: Path
) -> None:
    """The patch of a CPU configuration would leave the GPU pods as they are, and say that nothing
    becomes of them.
    """
    running = running_of(typed, config, tmp_path)
    written(config, with_keys(CONFIG, hardware="cpu16"))
    status, out, err = typed("k8s", "plan", "--config", config, "--against", running)
    assert (status, out) == (1, "")
    assert (
        "has the worker groups cpu and gpu, but the configuration makes the worker groups cpu; "
        "pass the manifests that kubectl kustomize prints with --manifest" in err
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "running.yaml does not exist."),
        (b"\xff\xff", "running.yaml:1: not UTF-8; save the file as UTF-8."),
        (b"a: [\n", "running.yaml:2: not YAML: did not find expected node content."),
        (b"", "running.yaml contains 0 RayServices; it must contain one."),
        (b"- 1\n- 2\n", "running.yaml contains 0 RayServices; it must contain one."),
        (
            b"kind: List\nitems: []\n",
            "running.yaml contains 0 RayServices; it must contain one.",
        ),
        (
            b"kind: List\nitems: [1]\n",
            "running.yaml contains 0 RayServices; it must contain one.",
        ),
        (
            b"kind: RayService\n---\nkind: RayService\n",
            "running.yaml contains 2 RayServices; it must contain one.",
        ),
        (
            b"kind: RayService\n",
            "has no worker groups, but the configuration makes the worker groups cpu and gpu",
        ),
    ],
)
def test_files_that_are_no_ray_service(
    content: bytes | None, said: str, typed: Typed, config: Path, tmp_path: Path
) -> None:
    """One line on standard error, status 1."""
    running = tmp_path / "running.yaml"
    if content is not None:
        running.write_bytes(content)
    status, out, err = typed("k8s", "plan", "--config", config, "--against", running)
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["plan", "--max-gpus", "2"],
            "--max-gpus needs --gpu, the kind of GPU; pass both.",
        ),
        (["plan", "--gpu", "l4", "--max-gpus", "0"], "--max-gpus is 0; it must be at least 1."),
        (["plan", "--gpu", "l5"], "accelerator 'l5x1' is not known; known are t4,"),
        (
            ["plan", "--manifest", "x.yaml"],
            "--manifest needs --against, the running RayService to compare with; pass both.",
        ),
        (["plan", "--gpu-price", "-1"], "--gpu-price is -1; it must be 0 or more."),
        (["plan", "--gpu-price", "nan"], "--gpu-price is nan; it must be 0 or more."),
        (
            ["render", "--out", "nowhere/service.yaml"],
            "nowhere/service.yaml cannot be written: No such file or directory.",
        ),
        (
            ["render", "--gpu", "gpu24gb"],
            "how nodes with GPU-24GB are labelled is not known; known are t4,",
        ),
    ],
)
def test_options_that_do_not_go(
    arguments: list[str], said: str, typed: Typed, config: Path
) -> None:
    """None is passed over in silence: one line on standard error, status 1."""
    status, out, err = typed("k8s", arguments[0], "--config", config, *arguments[1:])
    assert (status, out) == (1, "")
    assert err.startswith(f"siglip-serve: {said}")
    assert len(err.splitlines()) == 1


def test_several_configurations(typed: Typed, config: Path, tmp_path: Path) -> None:
    """Two applications share the pods; what cannot stand side by side is refused by `plan` as by
    `render`, and so is --gpu.
    """
    halves = [
        with_keys(
            CONFIG,
            name=name,
            serving__route_prefix=f"/{name}",
            serving__image_encoder={"num_gpus": 0.4, "max_replicas": 2},
            serving__text_encoder={"num_gpus": 0.12},
        )
        for name in ("one", "two")
    ]
    one, two = (written(tmp_path / f"config-{half['name']}.yaml", half) for half in halves)
    status, out, err = typed("k8s", "plan", "--config", one, two)
    assert (status, err) == (0, "")
    assert sum(line.startswith(("one ", "two ")) for line in out.splitlines()) == 8
    for command in ("plan", "render"):
        status, _, err = typed("k8s", command, "--config", one, one)
        assert (status, err) == (
            1,
            "siglip-serve: name one is used by more than one configuration; "
            "each application needs its own.\n",
        )
        status, _, err = typed("k8s", command, "--config", one, two, "--gpu", "l4")
        assert (
            status,
            err.startswith("siglip-serve: --gpu does not go with several configurations"),
        ) == (1, True)
        status, _, err = typed(
            "k8s", command, "--config", one, written(config, halves[1] | {"hardware": "l4x3"})
        )
        assert (
            status,
            err.startswith("siglip-serve: the configurations name different hardware"),
        ) == (1, True)


def test_fetching_the_demo_and_a_folder(typed: Typed, tiny: Callable[[str], Path]) -> None:
    """Both are here, so their place is all that there is to say; a folder has no commit, whatever
    folder it lies in.
    """
    assert typed("fetch", "demo") == (0, f"demo is in {DEMO_CHECKPOINT}\n", "")
    folder = tiny("siglip2")
    assert typed("fetch", folder) == (0, f"siglip2 is in {folder}\n", "")


def test_a_folder_called_snapshots_has_no_commit(
    typed: Typed, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The hub's cache keeps commits in folders of that name, and other people other things."""
    folder = tmp_path / "snapshots" / "mine"
    folder.parent.mkdir()
    folder.symlink_to(tiny("siglip2"))
    assert typed("fetch", folder) == (0, f"mine is in {folder}\n", "")


def test_fetching_from_the_hub_prints_the_commit(
    typed: Typed, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By short name and revision, as the hub's cache lays it out:
    models--owner--name/snapshots/commit.
    """
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--google--siglip2-base-patch16-224" / "snapshots" / commit
    cached.parent.mkdir(parents=True)
    cached.symlink_to(tiny("siglip2"))
    asked: list[Any] = []
    monkeypatch.setattr(
        hub_download,
        "snapshot_download",
        lambda model, revision, **_: asked.append((model, revision)) or str(cached),
    )
    status, out, err = typed("fetch", "base-v2", "--revision", "main")
    assert (status, err) == (0, "")
    assert out == f"google/siglip2-base-patch16-224 is in {cached}\nrevision: {commit}\n"
    assert asked == [("google/siglip2-base-patch16-224", "main")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--revision", "main"], "revision 'main' is set, but"),
        (
            ["nowhere"],
            "model 'nowhere' is neither a folder on this machine "
            "nor a hub id of the form owner/name.",
        ),
        (["google/siglip2-base-patch16-224"], "is not in the cache and HF_HUB_OFFLINE is set"),
        ([""], "plugins.siglip.model: string should have at least 1 character"),
    ],
)
def test_what_cannot_be_fetched(arguments: list[str], said: str, typed: Typed) -> None:
    """One line on standard error, status 1."""
    status, out, err = typed("fetch", *arguments)
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1
