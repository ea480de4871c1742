"""Devices, memory and time as the benchmarks measure them."""

import pytest
import torch

from himtok_plugin.benchmarks.measuring import check_memory, measure_peak_memory, random_squares, resolve_device


def test_peak_memory_is_the_most_allocated_at_once():
    def step():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b * 2

    assert 2 * 4000 <= measure_peak_memory(step, torch.device("cpu")) < 2 * 4000 + 500


def test_more_memory_than_is_free_is_rejected():
    check_memory(1, torch.device("cpu"), "a byte")
    with pytest.raises(ValueError, match=r"everything needs about .* GiB on cpu, .* GiB are free"):
        check_memory(1 << 60, torch.device("cpu"), "everything")


def test_devices_are_resolved_or_rejected():
    assert resolve_device("cpu").type == "cpu" and resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device: got 'abacus', which cannot be used"):
        resolve_device("abacus")


def test_random_squares_are_masks_with_both_kinds_of_pixels():
    squares = random_squares(20, 32)
    assert squares.shape == (20, 32, 32) and set(squares.unique().tolist()) == {0.0, 1.0}
    assert squares.flatten(1).any(1).all() and not squares.flatten(1).all(1).any()
