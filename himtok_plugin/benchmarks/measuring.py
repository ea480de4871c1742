"""Time, memory and devices: what all benchmarks measure with.

Memory is the peak of what the framework's allocator has handed out, beyond the amount at the start: on CUDA
`max_memory_allocated`, on a CPU the same quantity from the profiler's allocation events. Unlike the resident size of a
process it is exact to the byte, repeatable, and independent of what ran in the process before. It does not include
scratch memory that oneDNN allocates itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

MIB, GIB = 2**20, 2**30
BENCHMARK_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Dense bfloat16 TFLOPS by data sheet; the first key that is part of the device's name counts.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "H800": 989, "B200": 2250, "A100": 312, "A800": 312}

OnProgress = Callable[[int, int], None]  # runs done, runs in all


def ignore_progress(done: int, total: int) -> None:
    """The `OnProgress` that reports nothing."""


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        ValueError: the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise ValueError(f"device: got {name!r}, which cannot be used: {str(error).splitlines()[0]}") from error


def find_peak_tflops(device: torch.device, dtype: str) -> float | None:
    """Peak TFLOPS of a device by its data sheet; None if `PEAK_TFLOPS` does not list it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and dtype == "bfloat16" else ""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise a ValueError if fewer bytes are free than needed: running out of memory can stop the whole machine.

    Args:
        needed: bytes.
        device: device of the benchmark.
        what: what needs the memory, for the error message.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        import psutil  # comes with accelerate

        free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(f"{what} needs about {needed / GIB:.1f} GiB on {device}, {free / GIB:.1f} GiB are free")


def measure_peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Run `step` and return its peak of allocated memory in bytes, beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    # One event per allocation (> 0) or release (< 0); the profiler's tables only have sums per operator.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Run `step` and return its duration in seconds, including the work it left to the device."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    begin = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - begin


def random_squares(count: int, side: int) -> Tensor:
    """Random ellipses: float32 (count, side, side) of 0 and 1."""
    centres, radii = torch.rand(count, 2) * 0.4 + 0.3, torch.rand(count, 2) * 0.2 + 0.1
    grid = (torch.arange(side) + 0.5) / side
    y, x = (((grid - centres[:, i : i + 1]) / radii[:, i : i + 1]) ** 2 for i in (0, 1))
    return (y[:, :, None] + x[:, None, :] <= 1).float()
