"""The jobs of k8s/jobs: what the operator would take, what our own command takes, and what the planner says of their machines."""

import argparse
import copy
import shlex
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from serve_app.commands.batch import add_batch_arguments
from serve_app.config import parse_config
from serve_app.hardware.detection import parse_hardware
from serve_app.planning import plan_service
from tests.manifests.kube import ROOT, kustomized, problems

MODES = ("batch", "from-embeddings", "through-service")
RAY_MODES = ("batch", "from-embeddings")


def job_of(mode: str) -> dict[str, Any]:
    (found,) = (one for one in kustomized(f"k8s/jobs/{mode}") if one["kind"] in ("RayJob", "Job"))
    return found


def pods_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pod specifications of a job."""
    if job["kind"] == "Job":
        return [job["spec"]["template"]["spec"]]
    cluster = job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    return [job["spec"]["submitterPodTemplate"]["spec"], *(template["spec"] for template in templates)]


def arguments_of(job: dict[str, Any]) -> list[str]:
    """Return what `python -m serve_app.batch` is given."""
    words = shlex.split(job["spec"]["entrypoint"]) if job["kind"] == "RayJob" else pods_of(job)[0]["containers"][0]["command"]
    assert words[:3] == ["python", "-m", "serve_app.batch"]
    return words[3:] if job["kind"] == "RayJob" else list(pods_of(job)[0]["containers"][0]["args"])


@pytest.mark.parametrize("mode", RAY_MODES)
def test_the_operators_schema_takes_it_strictly(mode: str) -> None:
    """And refuses a field that is misspelt."""
    job = job_of(mode)
    assert problems(job, "ray.io_rayjobs") == []
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resource"] = {}
    assert len(problems(wrong, "ray.io_rayjobs")) == 2


@pytest.mark.parametrize("mode", MODES)
def test_every_pod_is_confined(mode: str) -> None:
    """Not root, nothing written to the image, no capabilities, limits on everything, and a version of the image."""
    for pod in pods_of(job_of(mode)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["image"].rpartition(":")[2] not in ("", "latest")


@pytest.mark.parametrize("mode", MODES)
def test_our_command_takes_the_arguments(mode: str) -> None:
    """Every option is one of `siglip-serve batch`."""
    parser = argparse.ArgumentParser()
    add_batch_arguments(parser)
    given = parser.parse_args(arguments_of(job_of(mode)))
    assert given.input.startswith("s3://")
    assert given.from_embeddings == (mode == "from-embeddings")
    assert bool(given.through_service) == (mode == "through-service")


def test_the_plan_fits_the_machines_of_the_job() -> None:
    """The hardware of the configuration is what the GPU group grows to, and an encoder fits on one of its pods."""
    (shared,) = (one for one in kustomized("k8s/jobs/batch") if one["kind"] == "ConfigMap")
    written = yaml.safe_load(shared["data"]["config.yaml"])
    config = parse_config(written | {"labels": str(ROOT / "configs/vocabularies/general.yaml")})
    plan = plan_service(config, lambda _: parse_hardware(written["hardware"]))
    (group,) = job_of("batch")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    hardware = parse_hardware(written["hardware"])
    assert (hardware.gpus, hardware.cpus) == (group["maxReplicas"] * limits["nvidia.com/gpu"], group["maxReplicas"] * int(limits["cpu"]))
    encoder = plan.deployments["image_encoder"]
    assert encoder.max_replicas * encoder.num_gpus <= hardware.gpus
    assert encoder.num_cpus / encoder.num_gpus < int(limits["cpu"])


def test_rays_autoscaler_sees_the_gpus() -> None:
    """Ray's own reading of the manifest: a head without CPUs, and GPU nodes from none to eight."""
    job = job_of("batch")
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "batch", "namespace": "siglip"}}
    spec = copy.deepcopy(job["spec"]["rayClusterSpec"])
    spec["headGroupSpec"].setdefault("rayStartParams", {})
    types = _derive_autoscaling_config_from_ray_cr(cluster | {"spec": spec})["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    gpu = types["gpu"]
    assert (gpu["resources"]["GPU"], gpu["min_workers"], gpu["max_workers"]) == (1, 0, 8)
