"""How a running job shows its progress: a bar in a terminal, lines elsewhere, and metrics."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray.util import metrics
from rich.progress import TextColumn

from serve_app.batch.output_files import Written
from serve_app.terminal.console import error_console, progress

LINE_EVERY_S = 10.0


@dataclass(slots=True)
class JobProgress:
    """Counts of a job.

    Attributes:
        inputs: Number of inputs of the whole job.
        done: Number of inputs that have a row, including those of earlier runs.
        encoded: Number of inputs that this run tagged.
        errors: Number of errors of this run, by code.
        bytes_read: Bytes that this run read.
        bytes_written: Bytes that this run wrote.
        encoders: Number of encoders that run now.
        started_s: When this run started, on the monotonic clock.
    """

    inputs: int
    done: int = 0
    encoded: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0
    bytes_written: int = 0
    encoders: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def add(self, written: Written) -> None:
        """Count a finished chunk."""
        self.done += written.inputs
        self.encoded += written.inputs
        self.errors.update(written.errors)
        self.bytes_read += written.bytes_read
        self.bytes_written += written.bytes_written

    @property
    def failed(self) -> int:
        """Number of inputs of this run that have an error."""
        return self.errors.total()

    @property
    def per_second(self) -> float:
        """Inputs that this run tags per second."""
        return self.encoded / max(1e-9, time.monotonic() - self.started_s)

    def line(self) -> str:
        """Return the counts as one line."""
        parts = [
            f"{self.done:,} of {self.inputs:,}",
            f"{self.per_second:,.1f} images/s",
            f"{self.failed:,} errors",
            f"{self.bytes_read / 1e6:,.0f} MB read",
        ]
        if self.encoders:
            parts.append(f"{self.encoders} encoder{'' if self.encoders == 1 else 's'}")
        if self.encoded and self.done < self.inputs:
            left_s = (self.inputs - self.done) / self.per_second
            parts.append(f"{_duration(left_s)} left")
        return ", ".join(parts)


class Metrics:
    """Counters that Ray exports with the prefix `ray_`; docs/batch.md lists them."""

    def __init__(self) -> None:
        self._images = metrics.Counter(
            "siglip_batch_images_total", "Inputs that have their row.", ("outcome",)
        )
        self._read = metrics.Counter(
            "siglip_batch_read_bytes_total", "Bytes of inputs that were read."
        )
        self._written = metrics.Counter(
            "siglip_batch_written_bytes_total", "Bytes of output that were written."
        )
        self._chunks = metrics.Counter("siglip_batch_chunks_total", "Chunks that were written.")
        self._left = metrics.Gauge("siglip_batch_images_left", "Inputs that have no row yet.")
        self._encoders = metrics.Gauge(
            "siglip_batch_encoders", "Encoders that have loaded their model."
        )

    def add(self, written: Written) -> None:
        """Count a finished chunk."""
        self._chunks.inc()
        # Ray raises an error if a counter is increased by zero
        if written.bytes_read:
            self._read.inc(written.bytes_read)
        if written.bytes_written:
            self._written.inc(written.bytes_written)
        tagged = written.inputs - sum(written.errors.values())
        for outcome, count in {"ok": tagged, **written.errors}.items():
            if count:
                self._images.inc(count, tags={"outcome": outcome})

    def show(self, job: JobProgress) -> None:
        """Set the gauges; Ray drops a gauge that is not set again within 20 s."""
        self._left.set(job.inputs - job.done)
        self._encoders.set(job.encoders)


@contextmanager
def shown_progress(job: JobProgress) -> Iterator[Callable[[], None]]:
    """Show the progress of a job.

    Yields a function to call whenever the progress may have changed.
    """
    console = error_console()
    if console.is_terminal:
        with progress(console, TextColumn("{task.fields[line]}", markup=False)) as bar:
            task = bar.add_task("Tagging", total=job.inputs, completed=job.done, line=job.line())
            yield lambda: bar.update(task, completed=job.done, line=job.line())
        return

    last_s = time.monotonic()

    def write_line() -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            console.print(job.line(), soft_wrap=True)

    yield write_line


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest_s} s"
    return f"{rest_s} s"
