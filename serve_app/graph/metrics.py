"""Every metric of ours, in one place; Ray exports them to Prometheus with the prefix `ray_`.

Units are Prometheus base units. Deployment, replica and application are added as labels by Serve.
"""

import asyncio
from collections import Counter

from ray.serve import metrics

BATCH_BUCKETS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
SECONDS_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]


def encoder_batch_size() -> metrics.Histogram:
    """Images or prompts in one forward pass of a tower."""
    return metrics.Histogram("siglip_encoder_batch_size", description="Items in one forward pass.", boundaries=BATCH_BUCKETS)


def encoder_batch_seconds() -> metrics.Histogram:
    """Time of one forward pass, transfers included."""
    return metrics.Histogram("siglip_encoder_batch_duration_seconds", description="Time of one forward pass.", boundaries=SECONDS_BUCKETS)


def encoder_batches() -> metrics.Counter:
    """Forward passes; items divided by batches is the mean batch size, which the histogram only approximates."""
    return metrics.Counter("siglip_encoder_batches_total", description="Forward passes.")


def encoder_items() -> metrics.Counter:
    """Images or prompts that went through a tower."""
    return metrics.Counter("siglip_encoder_items_total", description="Items that went through a tower.")


def model_loads() -> metrics.Counter:
    """Times that a tower was loaded in this process."""
    return metrics.Counter("siglip_model_loads_total", description="Times a tower was loaded.")


def images() -> metrics.Counter:
    """Images by how they ended: `ok`, or the code of their error."""
    return metrics.Counter("siglip_images_total", description="Images by outcome.", tag_keys=("outcome",))


def inner_retries() -> metrics.Counter:
    """Inner calls that were made again because a replica died."""
    return metrics.Counter("siglip_inner_retries_total", description="Inner calls made again after a replica died.")


def config_refusals() -> metrics.Counter:
    """Live configurations that were refused, the last good one kept."""
    return metrics.Counter("siglip_config_refusals_total", description="Live configurations refused.")


class OutcomeTally:
    """Counts outcomes in this process and hands them to the metric once a second: an increment costs 0.1 ms of CPU."""

    FLUSH_S = 1.0

    def __init__(self, counter: metrics.Counter) -> None:
        self._counter = counter
        self._pending: Counter[str] = Counter()

    def add(self, outcome: str, count: int = 1) -> None:
        """Count; called on the event loop."""
        if not self._pending:
            asyncio.get_running_loop().call_later(self.FLUSH_S, self._flush)
        self._pending[outcome] += count

    def _flush(self) -> None:
        pending, self._pending = self._pending, Counter()
        for outcome, count in pending.items():
            self._counter.inc(count, tags={"outcome": outcome})
