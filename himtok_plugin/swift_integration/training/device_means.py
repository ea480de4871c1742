"""Means of loss terms, summed on the training device and read once per log line.

ms-swift's own metrics read every value immediately, so that every step waits for the device.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class DeviceMeans:
    """Sums and counts of detached scalars, per mode ("train", "eval") and name."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def update(self, mode: str, name: str, value: Tensor) -> None:
        """Add a value, a tensor of shape ()."""
        key = (mode, name)
        value = value.detach().float()
        self._sums[key] = value + self._sums[key] if key in self._sums else value
        self._counts[key] = self._counts.get(key, 0) + 1

    def flush(self, mode: str, metrics: dict[str, Any]) -> None:
        """Move the mode's sums to ms-swift's `custom_metrics[mode]`, which averages over processes."""
        for key in [key for key in self._sums if key[0] == mode]:
            metric = metrics[key[1]]
            metric.state += float(self._sums.pop(key))
            metric.count += self._counts.pop(key)
