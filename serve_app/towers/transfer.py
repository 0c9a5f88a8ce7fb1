"""Arrays to a device and embeddings back, without a wait in between.

On a GPU, pixels are copied from pinned memory on a stream of their own, so the copy of one batch
runs while the batch before it is computed. The only wait of a batch is the one for its embeddings.
On other devices the same calls copy at once.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from serve_app.siglip.inputs import FloatArray

# Arrays from Ray's object store are read-only, and nothing here writes to them. torch warns of the
# first read-only array of a process and is silent about the rest.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(1), np.uint8))

Fetch = Callable[[], FloatArray]
"""Waits for a tensor that is being computed, and returns it as an array."""


class Transfer:
    """Copies to and from one device."""

    def __init__(self, device: str) -> None:
        """Create the stream for copies if the device is a GPU.

        Args:
            device: Name of the device, such as `cpu` or `cuda`.
        """
        self._device = torch.device(device)
        self._copies: Any = None
        if self._device.type == "cuda":
            self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @property
    def is_asynchronous(self) -> bool:
        """Whether tensors can be copied and computed while the caller goes on."""
        return self._copies is not None

    def to_device(self, array: "np.ndarray[Any, Any]") -> torch.Tensor:
        """Return an array as a tensor on the device.

        On the CPU the tensor shares the array's memory, so it must not be written to.
        """
        host = torch.from_numpy(array)
        if self._copies is None:
            return host.to(self._device)

        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            tensor = host.pin_memory().to(self._device, non_blocking=True)
        computing.wait_stream(self._copies)
        # torch may reuse the memory only after the computation, which runs on another stream
        tensor.record_stream(computing)
        return tensor

    def fetch_later(self, tensor: torch.Tensor) -> Fetch:
        """Start to copy a float32 tensor from the device; the result waits for the copy."""
        if self._copies is None:
            array: FloatArray = tensor.cpu().numpy()
            return lambda: array

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self._device))

        def fetch() -> FloatArray:
            copied.synchronize()
            embeds: FloatArray = host.numpy()
            return embeds

        return fetch
