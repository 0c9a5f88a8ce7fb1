"""Advice for operators before they deploy a service to Kubernetes, one sentence each."""

from collections.abc import Iterable, Sequence

from serve_app.config.service import ServiceConfig
from serve_app.hardware.plan import Plan
from serve_app.kuberay.groups import CPU, POD_LABEL

BASE_PORT = 8000
"""Port of the pods of k8s/base."""
FEEDING = ("preprocessor", "postprocessor")
"""Deployments that feed the encoders and do not need a GPU."""


def images_per_second(plan: Plan) -> float:
    """Return the images per second of a service, limited by its encoders and Preprocessors."""
    preprocessor = plan.deployments["preprocessor"]
    decoded_per_second = preprocessor.max_replicas * preprocessor.per_second
    return min(plan.images_per_second, decoded_per_second)


def service_advice(configs: Sequence[ServiceConfig], plans: Sequence[Plan]) -> list[str]:
    """Return advice on configurations and their plans."""
    planned = list(zip(configs, plans, strict=True))
    return [
        *_unpinned(configs),
        *_without_api_keys(configs),
        *_single_preprocessors(configs),
        *(line for config, plan in planned for line in _cpu_deployments_in_gpu_pods(config, plan)),
        *(line for config, plan in planned for line in _slow_decoding(config, plan)),
        *(line for plan in plans for line in plan.advice),
    ]


def base_advice(configs: Sequence[ServiceConfig]) -> list[str]:
    """Return advice on what k8s/base does not support in the configurations."""
    serving = configs[0].serving
    advice = []
    if serving.port != BASE_PORT:
        advice.append(
            f"serving.port is {serving.port}, but the pods, the Service and the policies of "
            f"k8s/base open {BASE_PORT}; remove serving.port."
        )
    if serving.ingress == "python":
        advice.append(
            "serving.ingress is python, but the pods of k8s/base start HAProxy; "
            "remove the HAProxy variables from the pods' environment."
        )
    return advice


def _unpinned(configs: Iterable[ServiceConfig]) -> list[str]:
    models = [
        config.siglip.model
        for config in configs
        if "/" in config.siglip.model and config.revision is None
    ]
    return [
        f"{model} has no revision; `siglip-serve fetch {model}` prints the commit to pin."
        for model in models
    ]


def _without_api_keys(configs: Iterable[ServiceConfig]) -> list[str]:
    return [
        f"{config.name} requires no API key, so every client that reaches it can use it; "
        "set access.api_keys."
        for config in configs
        if config.access.api_keys is None
    ]


def _single_preprocessors(configs: Iterable[ServiceConfig]) -> list[str]:
    advice = []
    for config in configs:
        preprocessor = config.serving.preprocessor
        if preprocessor.min_replicas < 2 and preprocessor.num_replicas in ("auto", 1):
            advice.append(
                f"{config.name} may run on a single Preprocessor, and an outage follows if it "
                "fails; set serving.preprocessor.min_replicas: 2."
            )
    return advice


def _cpu_deployments_in_gpu_pods(config: ServiceConfig, plan: Plan) -> list[str]:
    """Return advice on CPU deployments that may occupy the CPUs of an encoder."""
    unpinned = [
        name
        for name in FEEDING
        if getattr(config.serving, name).label_selector.get(POD_LABEL) != CPU
    ]
    if plan.precision.device != "cuda" or not unpinned:
        return []
    return [
        f"{' and '.join(unpinned)} of {config.name} may run in GPU pods and take the CPUs of the "
        f"encoders; set label_selector: {{{POD_LABEL}: {CPU}}}."
    ]


def _slow_decoding(config: ServiceConfig, plan: Plan) -> list[str]:
    rate = images_per_second(plan)
    if plan.precision.device != "cuda" or rate >= plan.images_per_second:
        return []
    return [
        f"decoding limits {config.name} to {rate:,.0f} of {plan.images_per_second:,.0f} images/s; "
        "raise the CPUs in hardware, or preprocessor.max_replicas."
    ]
