"""All metrics of this service, which Ray exports to Prometheus with the prefix `ray_`.

Units are Prometheus base units. Serve adds deployment, replica and application as labels.
"""

from ray.serve import metrics

from serve_app import __version__
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.precision import Precision

BATCH_BUCKETS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
SECONDS_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
MODEL_TAGS = (
    "model",
    "revision",
    "family",
    "dtype",
    "attention",
    "device",
    "quantization",
    "version",
)


def encoder_batch_size() -> metrics.Histogram:
    """Number of images or prompts in one forward pass of a tower."""
    return metrics.Histogram(
        "siglip_encoder_batch_size",
        description="Images or prompts in one forward pass.",
        boundaries=BATCH_BUCKETS,
    )


def encoder_batch_seconds() -> metrics.Histogram:
    """Duration of one forward pass, including transfers."""
    return metrics.Histogram(
        "siglip_encoder_batch_duration_seconds",
        description="Duration of one forward pass.",
        boundaries=SECONDS_BUCKETS,
    )


def encoder_batches() -> metrics.Counter:
    """Number of forward passes.

    Items divided by batches is the mean batch size, which the histogram only approximates.
    """
    return metrics.Counter("siglip_encoder_batches_total", description="Forward passes.")


def encoder_items() -> metrics.Counter:
    """Number of images or prompts that a tower encoded."""
    return metrics.Counter(
        "siglip_encoder_items_total", description="Images or prompts encoded by a tower."
    )


def encoder_busy_seconds() -> metrics.Counter:
    """Seconds in forward passes; its rate is the fraction of time that a replica's model is busy.

    The histogram's sum is only an estimate of it.
    """
    return metrics.Counter(
        "siglip_encoder_busy_seconds_total", description="Seconds in forward passes."
    )


def model_loads() -> metrics.Counter:
    """Number of times that this process loaded a tower."""
    return metrics.Counter("siglip_model_loads_total", description="Times a tower was loaded.")


def images() -> metrics.Counter:
    """Number of images by outcome (`ok` or an error code) and by format."""
    return metrics.Counter(
        "siglip_images_total",
        description="Images by outcome and format.",
        tag_keys=("outcome", "format"),
    )


def stage_seconds() -> metrics.Histogram:
    """Duration of each stage of an image; the stages are those of `Server-Timing`."""
    return metrics.Histogram(
        "siglip_stage_duration_seconds",
        description="Duration of one stage of an image.",
        boundaries=SECONDS_BUCKETS,
        tag_keys=("stage",),
    )


def waiting_images() -> metrics.Gauge:
    """Number of images in a Preprocessor that wait for decoding or for a micro-batch, by stage.

    Images that are being decoded count as waiting for decoding.
    """
    return metrics.Gauge(
        "siglip_waiting_images", description="Waiting images by stage.", tag_keys=("stage",)
    )


def requests() -> metrics.Counter:
    """Number of requests by route, method and status; 499 means that the client disconnected."""
    return metrics.Counter(
        "siglip_http_requests_total",
        description="Finished requests.",
        tag_keys=("route", "method", "status"),
    )


def request_seconds() -> metrics.Histogram:
    """Duration of a request, including the arrival of its body."""
    return metrics.Histogram(
        "siglip_http_request_duration_seconds",
        description="Duration of a request.",
        boundaries=SECONDS_BUCKETS,
        tag_keys=("route",),
    )


def refusals() -> metrics.Counter:
    """Number of error responses, by error code."""
    return metrics.Counter(
        "siglip_refusals_total",
        description="Error responses by error code.",
        tag_keys=("route", "code"),
    )


def text_rows() -> metrics.Counter:
    """Number of text embeddings that requests needed, by cache `hit` or `miss`."""
    return metrics.Counter(
        "siglip_text_cache_rows_total",
        description="Text embeddings that requests needed.",
        tag_keys=("result",),
    )


def gpu_memory() -> metrics.Gauge:
    """Memory of this replica on its GPU in bytes, by kind.

    `allocated` is used by tensors, `reserved` is allocated from the driver, and `limit` is the
    replica's share.
    """
    return metrics.Gauge(
        "siglip_gpu_memory_bytes", description="GPU memory of a replica.", tag_keys=("kind",)
    )


def model_info() -> metrics.Gauge:
    """The model that a replica runs, and its precision, as labels; the value is always 1.

    Ray drops a gauge that is not set for 20 s, so replicas set it repeatedly.
    """
    return metrics.Gauge(
        "siglip_model_info",
        description="The model that a replica runs; always 1.",
        tag_keys=MODEL_TAGS,
    )


def model_tags(model: str, checkpoint: Checkpoint, runtime: Precision) -> dict[str, str]:
    """Return the labels of `model_info`."""
    values = (
        model,
        checkpoint.revision or "",
        checkpoint.family.value,
        runtime.dtype,
        runtime.attention,
        runtime.device,
        runtime.quantization,
        __version__,
    )
    return dict(zip(MODEL_TAGS, values, strict=True))


def inner_retries() -> metrics.Counter:
    """Number of inner calls that were retried because a replica died."""
    return metrics.Counter(
        "siglip_inner_retries_total", description="Inner calls retried after a replica died."
    )


def config_refusals() -> metrics.Counter:
    """Number of live configurations that were refused; the previous one stays active."""
    return metrics.Counter(
        "siglip_config_refusals_total", description="Refused live configurations."
    )
