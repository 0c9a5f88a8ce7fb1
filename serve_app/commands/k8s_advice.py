"""What an operator should look at before a service goes to Kubernetes, one sentence each."""

from collections.abc import Iterable, Sequence

from serve_app.config.service import ServiceConfig
from serve_app.hardware.plan import Plan
from serve_app.kuberay.groups import CPU, POD_LABEL

BASE_PORT = 8000
"""Port of the pods of k8s/base."""
FEEDING = ("preprocessor", "postprocessor")
"""Deployments that feed the encoders and need no GPU."""


def images_per_second(plan: Plan) -> float:
    """Return the images a second that encoders process and Preprocessors decode for them."""
    decoding = plan.deployments["preprocessor"]
    return min(plan.images_per_second, decoding.max_replicas * decoding.per_second)


def service_advice(configs: Sequence[ServiceConfig], plans: Sequence[Plan]) -> list[str]:
    """Return advice on configurations and their plans."""
    planned = list(zip(configs, plans, strict=True))
    return [
        *_unpinned(configs),
        *_open(configs),
        *_single_preprocessors(configs),
        *(line for config, plan in planned for line in _strays(config, plan)),
        *(line for config, plan in planned for line in _slow_decoding(config, plan)),
        *(line for plan in plans for line in plan.advice),
    ]


def base_advice(configs: Sequence[ServiceConfig]) -> list[str]:
    """Return what has to be changed in k8s/base for a configuration."""
    serving = configs[0].serving
    advice = []
    if serving.port != BASE_PORT:
        advice.append(
            f"serving.port is {serving.port}, and the pods, the Service and the policies of "
            f"k8s/base open {BASE_PORT}; leave it out."
        )
    if serving.ingress == "python":
        advice.append(
            "serving.ingress is python, and the pods of k8s/base start HAProxy; "
            "take its variables out of their environment."
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


def _open(configs: Iterable[ServiceConfig]) -> list[str]:
    return [
        f"{config.name} asks for no API key (access.api_keys); whoever reaches it may use it."
        for config in configs
        if config.access.api_keys is None
    ]


def _single_preprocessors(configs: Iterable[ServiceConfig]) -> list[str]:
    advice = []
    for config in configs:
        preprocessor = config.serving.preprocessor
        if preprocessor.min_replicas < 2 and preprocessor.num_replicas in ("auto", 1):
            advice.append(
                f"{config.name} may run on one Preprocessor, whose end is an outage; "
                "set serving.preprocessor.min_replicas: 2."
            )
    return advice


def _strays(config: ServiceConfig, plan: Plan) -> list[str]:
    """Return advice on CPU deployments that may take an encoder's place."""
    loose = [
        name
        for name in FEEDING
        if getattr(config.serving, name).label_selector.get(POD_LABEL) != CPU
    ]
    if plan.precision.device != "cuda" or not loose:
        return []
    return [
        f"{' and '.join(loose)} of {config.name} may stand in GPU pods and take the CPUs of their "
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
