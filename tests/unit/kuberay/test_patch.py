"""Our own applying of a patch is kustomize's, and what is in a patch is what was asked for."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import ConfigError
from serve_app.kuberay.groups import WorkerGroup
from serve_app.kuberay.patch import apply_patch, fetched, patch_text, ray_service_patch
from tests.manifests.kube import ROOT, kustomized

OVERLAYS = sorted(path.name for path in (ROOT / "k8s/overlays").iterdir())
GROUPS = (WorkerGroup("cpu", 3, 5, 0, None, 2, 4), WorkerGroup("gpu", 4, 9, 1, "L4", 1, 2))
SO400M = "google/siglip2-so400m-patch14-384"
BASE = "google/siglip2-base-patch16-224"


def config_of(
    model: str, revision: str | None = None, labels: tuple[str, ...] = ("cat",)
) -> ServiceConfig:
    return parse_config(
        {"labels": list(labels), "revision": revision, "plugins": {"siglip": {"model": model}}}
    )


def ray_service(folder: Path | str) -> dict[str, Any]:
    (found,) = (one for one in kustomized(str(folder)) if one["kind"] == "RayService")
    return found


def base() -> dict[str, Any]:
    """The RayService of k8s/base, which has the CPU group only, and its copy for GPUs."""
    written = (ROOT / "k8s/base/rayservice.yaml").read_text(encoding="utf-8")
    manifest: dict[str, Any] = yaml.safe_load(written)
    groups = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    groups.append(copy.deepcopy(groups[0]) | {"groupName": "gpu"})
    return manifest


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_applied_as_kustomize_applies_it(overlay: str, tmp_path: Path) -> None:
    """`k8s plan --against` sees the manifest that `kubectl apply -k` sends: the overlay without its
    patch, patched by us.
    """
    copied = shutil.copytree(ROOT / "k8s", tmp_path / "k8s") / "overlays" / overlay
    kustomization = copied / "kustomization.yaml"
    written = yaml.safe_load(kustomization.read_text(encoding="utf-8"))
    patches = [
        yaml.safe_load((copied / one["path"]).read_text(encoding="utf-8"))
        for one in written.pop("patches")
    ]
    kustomization.write_text(yaml.safe_dump(written), encoding="utf-8")
    unpatched = ray_service(copied)
    before = copy.deepcopy(unpatched)
    (patch,) = patches
    made = apply_patch(unpatched, patch)
    assert made == ray_service(f"k8s/overlays/{overlay}")
    assert made != before == unpatched


def test_the_order_of_the_groups_is_checked() -> None:
    """A patch goes by places in the list: on a manifest with the groups in another order it would
    give GPU pods a CPU pod's size.
    """
    manifest = base()
    manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"].reverse()
    with pytest.raises(
        ConfigError, match="'gpu' and should be 'cpu'; the worker groups stand in another order"
    ):
        apply_patch(manifest, ray_service_patch("{}", GROUPS, [config_of("demo")]))


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        (("rayClusterConfig",), "/spec/rayClusterConfig/workerGroupSpecs/0/groupName"),
        (("serveConfigV2",), "/spec/serveConfigV2"),
        (("rayClusterConfig", "workerGroupSpecs", 1), "/workerGroupSpecs/1/groupName"),
        (
            ("rayClusterConfig", "workerGroupSpecs", 0, "maxReplicas"),
            "/workerGroupSpecs/0/maxReplicas",
        ),
        (
            ("rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "initContainers"),
            "/template/spec/initContainers/0/env/0",
        ),
    ],
)
def test_another_manifest_is_refused(gone: tuple[str | int, ...], missing: str) -> None:
    """A JSON patch replaces what is there (RFC 6902, 4.3), and says where something is missing."""
    manifest = base()
    at: Any = manifest["spec"]
    for key in gone[:-1]:
        at = at[key]
    del at[gone[-1]]
    with pytest.raises(
        ConfigError, match=f"the manifest has no .*{missing}; is it a RayService made from k8s/base"
    ):
        apply_patch(manifest, ray_service_patch("{}", GROUPS, [config_of("demo")]))


def test_what_a_patch_puts_in() -> None:
    """Bounds, resources with limits equal to requests, whole GPUs, what is fetched, and the
    affinity of the cards.
    """
    cpu, gpu = apply_patch(base(), ray_service_patch("x: 1\n", GROUPS, [config_of(BASE)]))["spec"][
        "rayClusterConfig"
    ]["workerGroupSpecs"]
    assert (cpu["minReplicas"], cpu["maxReplicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (
        2,
        4,
        1,
        2,
    )
    pods = [group["template"]["spec"] for group in (cpu, gpu)]
    resources = [pod["containers"][0]["resources"] for pod in pods]
    assert [one["limits"] for one in resources] == [
        {"cpu": "3", "memory": "5Gi"},
        {"cpu": "4", "memory": "9Gi", "nvidia.com/gpu": "1"},
    ]
    assert all(one["limits"] == one["requests"] for one in resources)
    assert [pod["initContainers"][0]["env"][0] for pod in pods] == [
        {"name": "SIGLIP_FETCH", "value": BASE}
    ] * 2
    assert "affinity" not in pods[0]
    assert "NVIDIA-L4" in str(pods[1]["affinity"])


@pytest.mark.parametrize(
    ("configs", "models"),
    [
        ([config_of(BASE)], BASE),
        ([config_of("so400m-v2", "main")], f"{SO400M}@main"),
        ([config_of(BASE, "refs/pr/1"), config_of(SO400M)], f"{BASE}@refs/pr/1 {SO400M}"),
        ([config_of(BASE), config_of("base-v2"), config_of(BASE, "main")], f"{BASE} {BASE}@main"),
        ([config_of("demo")], ""),
        (
            [
                config_of("/models/siglip"),
                config_of("./models/siglip"),
                config_of("~/siglip"),
                config_of("../siglip"),
            ],
            "",
        ),
    ],
)
def test_what_pods_fetch(configs: list[ServiceConfig], models: str) -> None:
    """Checkpoints of the hub by their ids, each once and at its revision; the demo's and folders
    are on the pods already.
    """
    assert fetched(configs) == models


def test_the_file_of_a_patch_is_the_patch() -> None:
    """Read again it is the same, whatever labels hold; the Serve config stands in it as text that a
    person can read.
    """
    labels = ("café: 'noir' #1", "猫", "🚲", "- dash", "tab\tand back\\slash", "{brace}")
    serve_config = yaml.safe_dump({"labels": list(labels)}, allow_unicode=True)
    patch = ray_service_patch(serve_config, GROUPS, [config_of(BASE)])
    text = patch_text(patch, ["config-a.yaml", "config-b.yaml"])
    assert yaml.safe_load(text) == patch
    assert text.startswith("# Made by `siglip-serve k8s render")
    assert "config-a.yaml config-b.yaml" in text.splitlines()[0]
    assert "  value: |\n    labels:\n" in text
    assert "猫" in text
    assert "&id" not in text


def test_long_lines_stay_whole() -> None:
    """YAML that folds a long line would give `kubectl diff` a change for each word."""
    serve_config = "a: " + "word " * 500 + "\n"
    assert serve_config.strip() in patch_text(
        ray_service_patch(serve_config, GROUPS, [config_of("demo")]), ["config.yaml"]
    )
