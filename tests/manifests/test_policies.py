"""What a well-kept collection of policies for Kubernetes has against our manifests, and why we do
not follow some of it.
"""

import re
from typing import Any

import pytest

from tests.manifests.kube import kustomizations, kustomized
from tests.manifests.policies import Finding, found_by_checkov

RAY = r"^Deployment\.siglip\.ray(service|job|cronjob)-"
SKIPPED = {
    "CKV_K8S_8": (
        RAY,
        "liveness: the operator adds its own probe to pods of Ray that have none; a submitter ends",
    ),
    "CKV_K8S_9": (RAY, "readiness: as above, and nobody sends requests to a job or to a head"),
    "CKV_K8S_15": (
        r".",
        "pull always: our tags are versions, and a node that has one must start "
        "when the registry does not answer",
    ),
    "CKV_K8S_35": (
        r".",
        "no secrets in the environment: the operator itself gives Ray its token "
        "and Redis' password there",
    ),
    "CKV_K8S_38": (
        RAY + r".*-head$",
        "no token: the head's autoscaler asks Kubernetes for pods; test_pods sees to all others",
    ),
    "CKV_K8S_40": (
        r".",
        "a user above 10000: the image's is 1000, as in Ray's own images, and that of redis is 999",
    ),
    "CKV_K8S_43": (
        r".",
        "a digest: our image is built by the person who names it, so it is not known here",
    ),
}
"""Checks that we do not follow: for which resources, what they ask for, and why not."""

BAD_POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "bad", "namespace": "elsewhere"},
    "spec": {
        "hostNetwork": True,
        "containers": [
            {"name": "bad", "image": "bad:latest", "securityContext": {"privileged": True}}
        ],
    },
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    """What checkov finds in everything, and in a pod that should not be."""
    objects = {folder: kustomized(folder) for folder in kustomizations()}
    return found_by_checkov(objects | {"bad": [BAD_POD]}, tmp_path_factory.mktemp("policies"))


def is_skipped(finding: Finding) -> bool:
    return (
        finding.check in SKIPPED
        and re.search(SKIPPED[finding.check][0], finding.resource) is not None
    )


@pytest.mark.parametrize("folder", kustomizations())
def test_policies_are_followed(findings: list[Finding], folder: str) -> None:
    """All of them but those that are skipped with a reason."""
    assert [found for found in findings if found.folder == folder and not is_skipped(found)] == []


def test_no_exception_is_left_over(findings: list[Finding]) -> None:
    """Each one skips something that is found in our manifests."""
    assert SKIPPED.keys() == {
        found.check for found in findings if found.folder != "bad" and is_skipped(found)
    }


def test_a_bad_pod_is_found(findings: list[Finding]) -> None:
    """Root, privileged, `latest`, without limits, and on its host's network."""
    root = "CKV_K8S_23"
    privileged = "CKV_K8S_16"
    latest = "CKV_K8S_14"
    limits = "CKV_K8S_11"
    host = "CKV_K8S_19"
    assert {root, privileged, latest, limits, host} <= {
        found.check for found in findings if found.folder == "bad"
    }
