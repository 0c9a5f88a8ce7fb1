"""The jobs of k8s/jobs: what our own command takes, what the planner says of their machines, and
when those that come again run.

What holds for every manifest is not here: schemas, the operator's rules, Ray's own reading, and
what pods may do.
"""

import argparse
import shlex
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from serve_app.commands.batch import add_arguments
from serve_app.config.service import parse_config
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.planning import plan_service
from serve_app.kuberay.machines import node_affinity
from tests.manifests.kube import ROOT, kustomizations, kustomized
from tests.manifests.pods import pods_of
from tests.manifests.schedules import is_schedule

MODES = [
    folder.removeprefix("k8s/jobs/")
    for folder in kustomizations()
    if folder.startswith("k8s/jobs/")
]
DAY_S = 86_400


def job_of(mode: str) -> dict[str, Any]:
    """The one object of a mode that runs."""
    (found,) = (one for one in kustomized(f"k8s/jobs/{mode}") if one["kind"].endswith("Job"))
    return found


def work_of(job: dict[str, Any]) -> dict[str, Any]:
    """What a job does each time: the specification of a Job or a RayJob."""
    template = job["spec"].get("jobTemplate", job)
    return template.get("spec", template)


def words_of(job: dict[str, Any]) -> list[str]:
    """The command of a job and its arguments."""
    work = work_of(job)
    if "entrypoint" in work:
        return shlex.split(work["entrypoint"])
    (container,) = work["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize("mode", MODES)
def test_our_command_takes_the_arguments(mode: str) -> None:
    """Every option is one of `siglip-serve batch`, and says what the name of the folder says."""
    command = words_of(job_of(mode))[:3]
    given = words_of(job_of(mode))[3:]
    assert command == ["python", "-m", "serve_app.batch"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    read = parser.parse_args(given)
    assert read.input.startswith("s3://")
    assert read.from_embeddings == (mode == "from-embeddings")
    assert bool(read.through_service) == (mode in ("through-service", "scheduled"))
    assert read.update == mode.startswith("scheduled")


@pytest.mark.parametrize("mode", MODES)
def test_every_pod_is_labelled_as_a_job(mode: str) -> None:
    """By that label metrics are gathered, and the network policy lets the pods speak to each
    other.
    """
    pods = pods_of(job_of(mode))
    assert [pod.labels.get("app.kubernetes.io/part-of") for pod in pods] == ["siglip-batch"] * len(
        pods
    )
    (policy,) = (one for one in kustomized(f"k8s/jobs/{mode}") if one["kind"] == "NetworkPolicy")
    assert policy["spec"]["podSelector"] == {
        "matchLabels": {"app.kubernetes.io/part-of": "siglip-batch"}
    }


@pytest.mark.parametrize("mode", MODES)
def test_workers_and_nothing_else_run_on_spot_machines(mode: str) -> None:
    """A worker that is gone is replaced, the head's end is the end of the try."""
    for pod in pods_of(job_of(mode)):
        tolerated = {one["key"] for one in pod.spec.get("tolerations", ())}
        assert (
            {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot"}
            <= tolerated
        ) == (pod.role == "worker")


@pytest.mark.parametrize("mode", ["through-service", "scheduled"])
def test_the_service_is_the_one_that_is_deployed(mode: str) -> None:
    """Its name and port are those that the RayService of k8s/base gives to its Service."""
    (url,) = (
        word.partition("=")[2]
        for word in words_of(job_of(mode))
        if word.startswith("--through-service=")
    )
    (service,) = (
        one["spec"]["serveService"] for one in kustomized("k8s/base") if one["kind"] == "RayService"
    )
    assert (urlsplit(url).hostname, urlsplit(url).port) == (
        service["metadata"]["name"],
        service["spec"]["ports"][0]["port"],
    )


def test_the_nightly_job_is_that_through_the_service() -> None:
    """The same pod but for `--update`; a night is left out while the last one's run goes on."""
    nightly = job_of("scheduled")
    once = job_of("through-service")
    assert words_of(nightly) == [*words_of(once), "--update"]
    work = work_of(nightly)
    work["template"]["spec"]["containers"][0]["args"].remove("--update")
    assert work == work_of(once)
    assert nightly["spec"]["concurrencyPolicy"] == "Forbid"
    assert is_schedule(nightly["spec"]["schedule"])


def test_the_nightly_job_on_gpus_is_that_of_batch() -> None:
    """The same cluster and the same command but for `--update`."""
    nightly = work_of(job_of("scheduled-gpu"))
    once = work_of(job_of("batch"))
    assert nightly["entrypoint"] == f"{once['entrypoint']} --update"
    for same in ("rayClusterSpec", "submitterPodTemplate", "submissionMode", "backoffLimit"):
        assert nightly[same] == once[same]


def test_a_night_on_gpus_ends_before_the_next() -> None:
    """All its tries together, since a RayCronJob starts the next run whatever the last one does;
    and none leaves its RayJob behind.
    """
    job = job_of("scheduled-gpu")
    minute, hour, *every_day = job["spec"]["schedule"].split()
    assert every_day == ["*", "*", "*"]
    assert minute.isdigit()
    assert hour.isdigit()
    work = work_of(job)
    rules = work["deletionStrategy"]["deletionRules"]
    machines_end_s = max(
        rule["condition"]["ttlSeconds"] for rule in rules if rule["policy"] == "DeleteCluster"
    )
    assert (work["backoffLimit"] + 1) * work["activeDeadlineSeconds"] + machines_end_s < DAY_S
    ended = {("jobStatus", "SUCCEEDED"), ("jobDeploymentStatus", "Failed")}
    for policy in ("DeleteCluster", "DeleteSelf"):
        conditions = [rule["condition"] for rule in rules if rule["policy"] == policy]
        assert {pair for condition in conditions for pair in condition.items()} >= ended


def test_the_plan_fits_the_machines_of_the_job() -> None:
    """The hardware of the configuration is what the GPU group grows to, and an encoder fits on one
    of its pods.
    """
    (shared,) = (one for one in kustomized("k8s/jobs/batch") if one["kind"] == "ConfigMap")
    written = yaml.safe_load(shared["data"]["config.yaml"])
    config = parse_config(written | {"labels": str(ROOT / "configs/vocabularies/general.yaml")})
    plan = plan_service(config, parse_hardware(written["hardware"]))
    (group,) = job_of("batch")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    hardware = parse_hardware(written["hardware"])
    assert (hardware.gpus, hardware.cpus) == (
        group["maxReplicas"] * limits["nvidia.com/gpu"],
        group["maxReplicas"] * int(limits["cpu"]),
    )
    encoder = plan.deployments["image_encoder"]
    assert encoder.max_replicas * encoder.num_gpus <= hardware.gpus
    assert encoder.num_cpus / encoder.num_gpus < int(limits["cpu"])
    assert hardware.accelerator is not None
    assert group["template"]["spec"]["affinity"]["nodeAffinity"] == node_affinity(
        hardware.accelerator.name
    ), "on that card and no other"
