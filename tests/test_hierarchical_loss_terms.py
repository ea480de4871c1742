"""hierarchical_loss.py, its terms: by hand, and blurred targets against a direct two-dimensional convolution."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_squares

from himtok_plugin.hierarchical_loss import coarse_sigma, coarse_target, draw_prefix_lengths, mask_bce, mask_dice


def test_bce_by_hand():
    probabilities = torch.tensor([[[0.8, 0.3], [0.5, 1.0]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    expected = -(math.log(0.8) + math.log(0.7) + math.log(0.5)) / 4
    assert float(mask_bce(probabilities, target)) == pytest.approx(expected, abs=1e-5)


def test_bce_of_a_certain_error_is_clamped_and_has_no_gradient_of_infinity():
    probabilities = torch.tensor([[[0.0]]], requires_grad=True)
    loss = mask_bce(probabilities, torch.ones(1, 1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-4) and probabilities.grad.isfinite().all()


def test_bce_takes_grey_targets():
    half = torch.full((1, 2, 2), 0.5)
    assert float(mask_bce(half, half)) == pytest.approx(math.log(2))


def test_dice_by_hand_sums_over_the_whole_batch():
    probabilities = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]])
    target = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    assert float(mask_dice(probabilities, target)) == pytest.approx(1 - 2 * 1 / (1.5 + 3), abs=1e-6)


def test_dice_with_weights_is_one_per_mask():
    probabilities = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]])
    target = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    expected = 0.5 * (1 - 2 / 2.5) + 2.0 * 1
    assert float(mask_dice(probabilities, target, torch.tensor([0.5, 2.0]))) == pytest.approx(expected, abs=1e-5)


def test_dice_of_two_empty_masks_is_zero():
    assert float(mask_dice(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))) == 0


@pytest.mark.parametrize("term", [mask_bce, mask_dice])
def test_weighted_terms_of_a_batch_add_up_to_those_of_its_halves(term):
    probabilities, target, weights = torch.rand(6, 16, 16), random_squares(6), torch.rand(6)
    halves = [term(probabilities[part], target[part], weights[part]) for part in (slice(0, 2), slice(2, 6))]
    assert torch.allclose(term(probabilities, target, weights), sum(halves), atol=1e-5)


def test_equal_weights_of_bce_are_the_mean_over_the_batch():
    probabilities, target = torch.rand(4, 16, 16), random_squares(4)
    assert torch.allclose(mask_bce(probabilities, target), mask_bce(probabilities, target, torch.full((4,), 0.25)))


@pytest.mark.parametrize("term", [mask_bce, mask_dice])
def test_terms_are_float32_from_bfloat16(term):
    assert term(torch.rand(2, 4, 4).bfloat16(), torch.rand(2, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize("term", [mask_bce, mask_dice])
def test_terms_of_no_square_are_zero(term):
    nothing = torch.zeros(0, 4, 4, requires_grad=True)
    for weights in (None, torch.zeros(0)):
        loss = term(nothing, nothing.detach(), weights)
        loss.backward()
        assert loss.item() == 0 and nothing.grad.shape == nothing.shape


@pytest.mark.parametrize("term", [mask_bce, mask_dice])
@pytest.mark.parametrize(
    ("target", "weights", "message"),
    [
        ((2, 1, 8, 8), None, r"\(2, 8, 8\), target of shape \(2, 1, 8, 8\): expected the same"),
        ((1, 8, 8), None, r"\(2, 8, 8\), target of shape \(1, 8, 8\)"),
        ((2, 8, 8), (1,), r"weights of shape \(1,\), probabilities of shape \(2, 8, 8\): expected .* \(2,\)"),
        ((2, 8, 8), (2, 8), r"weights of shape \(2, 8\)"),
    ],
)
def test_shapes_are_not_broadcast_but_refused(term, target, weights, message):
    with pytest.raises(ValueError, match=message):
        term(torch.rand(2, 8, 8), torch.rand(target), None if weights is None else torch.rand(weights))


@pytest.mark.parametrize(("n", "sigma"), [(1, 100 / 3 - 2), (2, 23), (8, 8), (31, 100 / 33 - 2)])
def test_sigma_as_published(n, sigma):
    assert coarse_sigma(n) == pytest.approx(sigma)


def test_sigma_scales_with_tokens_and_square():
    assert coarse_sigma(2, num_mask_tokens=8, image_size=64) == pytest.approx(coarse_sigma(8) / 4)


def direct_blur(square, sigma):
    """Two-dimensional Gaussian with support 2 ceil(3 sigma) + 1 and zero padding, divided by its maximum."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    blurred = F.conv2d(square.double()[None, None], (kernel / kernel.sum())[None, None], padding=reach)[0, 0]
    return (blurred / blurred.max()).float()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0, 7.7])
def test_coarse_target_is_a_direct_gaussian_with_zero_padding(sigma):
    squares = random_squares(3, side=24)
    squares[2] = 1  # touches every border, where the padding shows
    blurred = coarse_target(squares, sigma=sigma)
    for square, result in zip(squares, blurred, strict=True):
        assert torch.allclose(result, direct_blur(square, sigma), atol=1e-5)


def test_coarse_target_of_a_point_ends_at_its_support():
    point = torch.zeros(1, 21, 21)
    point[0, 10, 10] = 1
    blurred = coarse_target(point, sigma=1.5)[0]  # reach ceil(4.5) = 5
    assert blurred[10, 15] > 0 and blurred[10, 16] == 0 and blurred[10, 10] == 1
    assert float(blurred[11, 12]) == pytest.approx(math.exp(-(1 + 4) / (2 * 1.5**2)), rel=1e-5)


def test_coarse_target_by_prefix_length_uses_the_published_sigma():
    squares = random_squares(2, side=32)
    assert torch.equal(coarse_target(squares, 9), coarse_target(squares, sigma=100 / 11 - 2))


def test_every_square_may_have_a_sigma_of_its_own():
    squares = random_squares(3)
    mixed = coarse_target(squares, sigma=torch.tensor([0.0, 1.0, 3.0]))
    assert torch.equal(mixed[0], squares[0])
    assert torch.allclose(mixed[2], coarse_target(squares[2], sigma=3.0), atol=1e-6)


def test_an_empty_mask_stays_zero_and_every_other_reaches_one():
    squares = random_squares(2)
    squares[0] = 0
    blurred = coarse_target(squares, sigma=5.0)
    assert not blurred[0].any() and blurred[1].max() == 1 and blurred.isfinite().all()


def test_coarse_target_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(coarse_target(random_squares(1), sigma=2.0), coarse_target(random_squares(1), sigma=2.0))
        assert coarse_target(random_squares(1), sigma=2.0).dtype == torch.float32


def test_coarse_target_wants_a_length_or_a_sigma():
    for arguments in ({}, {"num_tokens": 3, "sigma": 1.0}):
        with pytest.raises(ValueError, match="either num_tokens or sigma"):
            coarse_target(random_squares(1), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0: expected at least 1"),
        ({"sigma": torch.ones(3)}, r"sigma of shape \(3,\), target of shape \(2, 16, 16\): expected .* \(2,\)"),
        ({"num_tokens": torch.ones(1)}, r"sigma of shape \(1,\), target of shape \(2, 16, 16\)"),
    ],
)
def test_coarse_target_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        coarse_target(random_squares(2), **arguments)


def test_drawn_levels_are_distinct_and_shorter_than_the_whole():
    for _ in range(50):
        levels = draw_prefix_lengths(3, 8)
        assert len(set(levels.tolist())) == 3 and 1 <= levels.min() and levels.max() <= 7
    assert sorted(draw_prefix_lengths(7, 8).tolist()) == list(range(1, 8))


def test_level_frequencies_follow_one_over_n_plus_nine():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(8)
    for _ in range(6000):
        counts[draw_prefix_lengths(1, 8, generator)] += 1
    expected = 1 / (torch.arange(1, 8) + 9.0)
    assert counts[0] == 0
    assert torch.allclose(counts[1:] / 6000, expected / expected.sum(), atol=0.02)


def test_a_generator_repeats_its_draw():
    first, second = (draw_prefix_lengths(3, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("count", [0, 8])
def test_more_levels_than_there_are_is_refused(count):
    with pytest.raises(ValueError, match=f"num_coarse_levels={count}: expected 1 to 7"):
        draw_prefix_lengths(count, 8)
