"""hierarchical_loss.py, the loss on tiny mask tokenizers: its sum over levels, its gradient, and sums over batches."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_squares, tiny_model

from himtok_plugin.hierarchical_loss import (
    HierarchicalMaskLoss,
    coarse_sigma,
    coarse_target,
    code_probabilities,
    mask_bce,
    mask_dice,
)


@pytest.fixture
def model():
    return tiny_model()


def random_logits(count, seed=0):
    return torch.randn(count, 4, 12, generator=torch.Generator().manual_seed(seed))


def terms(losses):
    """(3,) of a MaskLosses."""
    return torch.stack([losses.bce, losses.dice, losses.hierarchical])


def test_probabilities_are_the_softmax_of_twice_the_logits():
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    assert torch.allclose(code_probabilities(logits), F.softmax(torch.tensor([[0.0, 2.0, -2.0]]), dim=-1))
    assert torch.allclose(code_probabilities(logits, scale=1.0), F.softmax(logits, dim=-1))


def test_probabilities_are_float32_from_bfloat16_logits():
    probabilities = code_probabilities(random_logits(2).bfloat16())
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, 4))


def test_the_hierarchical_loss_is_summed_over_its_levels(model):
    probabilities, target = code_probabilities(random_logits(3)), random_squares(3)
    loss = HierarchicalMaskLoss()
    together = loss(model, probabilities, target, levels=torch.tensor([1, 2, 3])).hierarchical
    one_by_one = [loss(model, probabilities, target, levels=torch.tensor([n])).hierarchical for n in (1, 2, 3)]
    assert len({round(value.item(), 5) for value in one_by_one}) == 3
    assert torch.allclose(together, sum(one_by_one), atol=1e-5)


def test_terms_by_hand(model):
    """The tail's probabilities are zero, and the target is blurred as far as the tokenizer's size says."""
    probabilities, target = code_probabilities(random_logits(2)), random_squares(2)
    losses = HierarchicalMaskLoss()(model, probabilities, target, levels=torch.tensor([3, 1]))
    full = model.decode_probabilities(probabilities)
    assert torch.allclose(losses.bce, mask_bce(full, target)) and torch.allclose(losses.dice, mask_dice(full, target))
    expected = 0
    for n in (3, 1):
        prefix = torch.cat([probabilities[:, :n], torch.zeros(2, 4 - n, 12)], dim=1)
        coarse = coarse_target(target, sigma=coarse_sigma(n, num_mask_tokens=4, image_size=16))
        prediction = model.decode_probabilities(prefix)
        expected = expected + mask_bce(prediction, coarse) + 0.25 * mask_dice(prediction, coarse)
    assert torch.allclose(losses.hierarchical, expected, atol=1e-5)


def test_gradient_reaches_logits_and_de_tokenizer_but_not_the_encoder(model):
    logits = random_logits(2).requires_grad_()
    losses = HierarchicalMaskLoss()(model, code_probabilities(logits), random_squares(2), levels=torch.tensor([1, 3]))
    losses.hierarchical.backward(retain_graph=True)
    assert (logits.grad[:, :3] != 0).any(dim=-1).all() and not logits.grad[:, 3].any()
    (losses.bce + losses.dice).backward()
    assert (logits.grad[:, 3] != 0).any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.decoder.parameters())
    assert model.quantize.embedding.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.encoder.parameters())


def test_a_frozen_de_tokenizer_still_passes_the_gradient_on(model):
    model.requires_grad_(False)
    logits = random_logits(2).requires_grad_()
    terms(HierarchicalMaskLoss()(model, code_probabilities(logits), random_squares(2))).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_weighted_losses_of_a_batch_add_up_to_those_of_its_halves(model):
    probabilities, target, weights = code_probabilities(random_logits(5)), random_squares(5), torch.rand(5)
    loss, levels = HierarchicalMaskLoss(), torch.tensor([1, 2])
    whole = terms(loss(model, probabilities, target, weights, levels))
    halves = [
        terms(loss(model, probabilities[part], target[part], weights[part], levels))
        for part in (slice(0, 2), slice(2, 5))
    ]
    assert torch.allclose(whole, sum(halves), atol=1e-4)


def test_a_term_that_is_not_wanted_is_a_zero_and_is_not_computed(model):
    probabilities, target = code_probabilities(random_logits(1)), random_squares(1)
    decoded = []
    model.pixel_decoder.register_forward_hook(lambda *_: decoded.append(1))
    nothing = HierarchicalMaskLoss()(model, probabilities, target, full=False, hierarchical=False)
    assert not terms(nothing).any() and not decoded
    full = HierarchicalMaskLoss()(model, probabilities, target, hierarchical=False)
    assert full.bce > 0 and full.dice > 0 and full.hierarchical == 0 and len(decoded) == 1
    coarse = HierarchicalMaskLoss()(model, probabilities, target, full=False)
    assert coarse.bce == coarse.dice == 0 and coarse.hierarchical > 0


def test_a_tokenizer_of_one_token_has_no_coarser_level():
    model = tiny_model(num_mask_tokens=1)
    probabilities = code_probabilities(random_logits(2)[:, :1])
    losses = HierarchicalMaskLoss()(model, probabilities, random_squares(2))
    assert losses.bce > 0 and losses.hierarchical == 0


def test_no_more_levels_are_drawn_than_there_are_lengths(model):
    probabilities, target = code_probabilities(random_logits(2)), random_squares(2)
    loss = HierarchicalMaskLoss(num_levels=10)  # of 4 tokens there are 3 shorter prefixes: all are drawn
    everything = loss(model, probabilities, target, levels=torch.tensor([1, 2, 3])).hierarchical
    assert torch.allclose(loss(model, probabilities, target).hierarchical, everything, atol=1e-5)


def test_losses_are_float32_under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = HierarchicalMaskLoss()(model, code_probabilities(random_logits(2)), random_squares(2))
    assert terms(losses).dtype == torch.float32 and terms(losses).isfinite().all()


def test_no_mask_has_losses_of_zero_that_may_be_differentiated(model):
    logits = random_logits(0).requires_grad_()
    for weights in (None, torch.zeros(0)):
        losses = HierarchicalMaskLoss()(model, code_probabilities(logits), torch.zeros(0, 16, 16), weights)
        assert terms(losses).tolist() == [0, 0, 0] and terms(losses).dtype == torch.float32
        terms(losses).sum().backward()
    assert logits.grad.shape == (0, 4, 12)


@pytest.mark.parametrize(
    ("target", "weights", "message"),
    [
        ((2, 8, 8), None, r"\(2, 4, 12\), target of shape \(2, 8, 8\): expected \(b, k, v\) and \(b, 16, 16\)"),
        ((3, 16, 16), None, r"\(2, 4, 12\), target of shape \(3, 16, 16\)"),
        ((2, 1, 16, 16), None, r"\(2, 4, 12\), target of shape \(2, 1, 16, 16\)"),
        ((2, 16, 16), (3,), r"weights of shape \(3,\), probabilities of shape \(2, 16, 16\)"),
    ],
)
def test_shapes_that_do_not_fit_each_other_are_named(model, target, weights, message):
    weights = None if weights is None else torch.ones(weights)
    for skipped in ("full", "hierarchical"):
        with pytest.raises(ValueError, match=message):
            HierarchicalMaskLoss()(
                model, code_probabilities(random_logits(2)), torch.zeros(target), weights, **{skipped: False}
            )


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (torch.tensor([0]), r"levels \[0\]: expected 1 <= n < 4"),
        (torch.tensor([1, 4]), r"levels \[1, 4\]: expected 1 <= n < 4"),
        (torch.tensor([[1, 2]]), r"levels of shape \(1, 2\)"),
        (torch.tensor([], dtype=torch.int64), r"levels of shape \(0,\)"),
        (torch.tensor([1.0]), "torch.float32 on cpu: expected .* int64 on the CPU"),
        (torch.ones(1, dtype=torch.int64, device="meta"), "on meta: expected .* on the CPU"),
    ],
)
def test_levels_that_are_no_shorter_prefixes_are_refused(model, levels, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalMaskLoss()(model, code_probabilities(random_logits(1)), random_squares(1), levels=levels)
