"""Every metric of ours, in one place; Ray exports them to Prometheus with the prefix `ray_`.

Units are Prometheus base units. Deployment, replica and application are added as labels by Serve.
"""

from ray.serve import metrics

from serve_app import __version__
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.precision import Runtime

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
    """Images or prompts in one forward pass of a tower."""
    return metrics.Histogram(
        "siglip_encoder_batch_size",
        description="Items in one forward pass.",
        boundaries=BATCH_BUCKETS,
    )


def encoder_batch_seconds() -> metrics.Histogram:
    """Time of one forward pass, transfers included."""
    return metrics.Histogram(
        "siglip_encoder_batch_duration_seconds",
        description="Time of one forward pass.",
        boundaries=SECONDS_BUCKETS,
    )


def encoder_batches() -> metrics.Counter:
    """Forward passes; items divided by batches is the mean batch size, which the histogram only
    approximates.
    """
    return metrics.Counter("siglip_encoder_batches_total", description="Forward passes.")


def encoder_items() -> metrics.Counter:
    """Images or prompts that went through a tower."""
    return metrics.Counter(
        "siglip_encoder_items_total", description="Items that went through a tower."
    )


def encoder_busy_seconds() -> metrics.Counter:
    """Seconds in forward passes: its rate is the share of time that a replica's model works.

    The histogram's sum is an estimate.
    """
    return metrics.Counter(
        "siglip_encoder_busy_seconds_total", description="Seconds in forward passes."
    )


def model_loads() -> metrics.Counter:
    """Times that a tower was loaded in this process."""
    return metrics.Counter("siglip_model_loads_total", description="Times a tower was loaded.")


def images() -> metrics.Counter:
    """Images by how they ended (`ok`, or the code of their error) and by what format their first
    bytes look like.
    """
    return metrics.Counter(
        "siglip_images_total",
        description="Images by outcome and format.",
        tag_keys=("outcome", "format"),
    )


def stage_seconds() -> metrics.Histogram:
    """Time of each stage of an image; the stages are those of `Server-Timing`."""
    return metrics.Histogram(
        "siglip_stage_duration_seconds",
        description="Time of a stage of an image.",
        boundaries=SECONDS_BUCKETS,
        tag_keys=("stage",),
    )


def waiting_images() -> metrics.Gauge:
    """Images in a Preprocessor that wait: for a decoding thread (or in one), or for a place in a
    micro-batch.
    """
    return metrics.Gauge(
        "siglip_waiting_images", description="Images that wait, by what for.", tag_keys=("stage",)
    )


def requests() -> metrics.Counter:
    """Requests by documented route, method and status; 499 is one whose client left."""
    return metrics.Counter(
        "siglip_http_requests_total",
        description="Requests answered.",
        tag_keys=("route", "method", "status"),
    )


def request_seconds() -> metrics.Histogram:
    """Time of a request, its body's arrival included."""
    return metrics.Histogram(
        "siglip_http_request_duration_seconds",
        description="Time of a request.",
        boundaries=SECONDS_BUCKETS,
        tag_keys=("route",),
    )


def refusals() -> metrics.Counter:
    """Requests that were answered with an error, by its code."""
    return metrics.Counter(
        "siglip_refusals_total",
        description="Requests answered with an error.",
        tag_keys=("route", "code"),
    )


def text_rows() -> metrics.Counter:
    """Text embeddings that requests needed, by whether they were known (`hit`) or had to be encoded
    (`miss`).
    """
    return metrics.Counter(
        "siglip_text_cache_rows_total",
        description="Text embeddings that requests needed.",
        tag_keys=("result",),
    )


def gpu_memory() -> metrics.Gauge:
    """Memory of this replica on its GPU: `allocated` in tensors, `reserved` from the driver,
    `limit` of its share.
    """
    return metrics.Gauge(
        "siglip_gpu_memory_bytes", description="GPU memory of a replica.", tag_keys=("kind",)
    )


def model_info() -> metrics.Gauge:
    """The model that a replica runs and how, always 1.

    Ray forgets a gauge that is not set for 20 s, so it is set again and again.
    """
    return metrics.Gauge(
        "siglip_model_info",
        description="The model that a replica runs; always 1.",
        tag_keys=MODEL_TAGS,
    )


def model_tags(model: str, checkpoint: Checkpoint, runtime: Runtime) -> dict[str, str]:
    """Return the tags of `model_info`."""
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
    """Inner calls that were made again because a replica died."""
    return metrics.Counter(
        "siglip_inner_retries_total", description="Inner calls made again after a replica died."
    )


def config_refusals() -> metrics.Counter:
    """Live configurations that were refused, the last good one kept."""
    return metrics.Counter(
        "siglip_config_refusals_total", description="Live configurations refused."
    )
