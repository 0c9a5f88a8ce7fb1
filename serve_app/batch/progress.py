"""What is seen of a job while it runs: a bar in a terminal, lines elsewhere, and metrics."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray.util import metrics
from rich.progress import TextColumn

from serve_app.batch.rows import Written
from serve_app.terminal.console import SafeConsole, progress

LINE_EVERY_S = 10.0


@dataclass(slots=True)
class Tally:
    """What a run has done.

    Attributes:
        inputs: Of the whole job.
        done: Inputs that have their row, those of earlier runs among them.
        encoded: Inputs that this run did.
        errors: Of this run, by code.
        bytes_read: By this run.
        bytes_written: By this run.
        encoders: That run at this moment.
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
        """Count a chunk that is finished."""
        self.done += written.inputs
        self.encoded += written.inputs
        self.errors.update(written.errors)
        self.bytes_read += written.bytes_read
        self.bytes_written += written.bytes_written

    @property
    def failed(self) -> int:
        """Inputs of this run that have an error."""
        return self.errors.total()

    @property
    def per_second(self) -> float:
        """Inputs a second of this run."""
        return self.encoded / max(1e-9, time.monotonic() - self.started_s)

    def line(self) -> str:
        """Return all of it in one line."""
        left = (self.inputs - self.done) / self.per_second if self.encoded else None
        parts = [
            f"{self.done:,} of {self.inputs:,}",
            f"{self.per_second:,.1f} images/s",
            f"{self.failed:,} errors",
            f"{self.bytes_read / 1e6:,.0f} MB read",
        ]
        if self.encoders:
            parts.append(f"{self.encoders} encoder{'' if self.encoders == 1 else 's'}")
        return ", ".join(parts) + (
            f", {_duration(left)} left" if left is not None and self.done < self.inputs else ""
        )


class Metrics:
    """Counters that Ray exports with the prefix `ray_`; see docs/batch.md."""

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
        """Count a chunk that is finished."""
        self._chunks.inc()
        for counter, nbytes in (
            (self._read, written.bytes_read),
            (self._written, written.bytes_written),
        ):
            if nbytes:  # Ray refuses to add nothing
                counter.inc(nbytes)
        for code, count in (
            {"ok": written.inputs - sum(written.errors.values())} | written.errors
        ).items():
            if count:
                self._images.inc(count, tags={"outcome": code})

    def show(self, tally: Tally) -> None:
        """Set the gauges again: Ray forgets one that is not set for 20 s."""
        self._left.set(tally.inputs - tally.done)
        self._encoders.set(tally.encoders)


@contextmanager
def shown_progress(tally: Tally) -> Iterator[Callable[[], None]]:
    """Show a tally while it grows: yield what is to be called whenever it may have."""
    console = SafeConsole(stderr=True)
    if console.is_terminal:
        with progress(console, TextColumn("{task.fields[line]}", markup=False)) as bar:
            task = bar.add_task(
                "Tagging", total=tally.inputs, completed=tally.done, line=tally.line()
            )
            yield lambda: bar.update(task, completed=tally.done, line=tally.line())
        return
    last_s = time.monotonic()

    def write_line() -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            console.print(tally.line(), soft_wrap=True)

    yield write_line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
