"""logit_tap.py: a tap changes no gradient, and is bypassed when a model changes its logits."""

import pytest
import torch
import torch.nn.functional as F

from himtok_plugin.hierarchical_loss import code_probabilities
from himtok_plugin.lmm.logit_tap import LogitTap, gather_mask_logits

CODE_IDS, POSITIONS = slice(5, 9), torch.tensor([1, 7, 8])


class TinyLMM(torch.nn.Module):
    """Hidden states (b, n, 6) to the next-token loss and logits over 20 tokens, as transformers' models return them."""

    def __init__(self, dtype=torch.float32, after=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(6, 20, bias=False, dtype=dtype)
        self.after = after

    def forward(self, hidden):
        logits = self.after(self.head(hidden))
        return F.cross_entropy(logits.flatten(0, 1).float(), torch.arange(len(logits) * logits.shape[1]) % 20), logits


def gradients(lmm, tap, outside=lambda logits: logits, next_token=1.0):
    """Gradients of hidden states and output layer under both losses, with or without a tap, and what was tapped."""
    hidden = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)).to(lmm.head.weight.dtype)
    hidden.requires_grad_()
    with tap or LogitTap(torch.nn.Identity()):
        loss, logits = lmm(hidden)
        logits = outside(logits)
        behind = tap.find_tapped_logits(logits) if tap else logits
        mask_loss = (code_probabilities(gather_mask_logits(behind, CODE_IDS, POSITIONS))[:, 0] ** 2).sum()
    return torch.autograd.grad(next_token * loss + mask_loss, [hidden, lmm.head.weight]), behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outside", [lambda logits: logits, lambda logits: logits.float()], ids=["as_is", "cast"])
@pytest.mark.parametrize("next_token", [1.0, 0.0])
def test_a_tap_changes_no_gradient(dtype, outside, next_token):
    expected, _ = gradients(TinyLMM(dtype), None, outside, next_token)
    lmm = TinyLMM(dtype)
    found, behind = gradients(lmm, LogitTap(lmm.head), outside, next_token)
    assert type(behind.grad_fn).__name__ == "_DenseGradientBackward" and behind.dtype == dtype
    for one, other in zip(found, expected, strict=True):
        assert one.layout == torch.strided and one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_the_gradient_of_tapped_logits_is_the_numerical_one():
    head = torch.nn.Identity()
    tap = LogitTap(head)

    def both_losses(logits):
        with tap:
            tapped = tap.find_tapped_logits(head(logits * 1))
            return gather_mask_logits(tapped, CODE_IDS, POSITIONS), (tapped**2).sum(-1)

    logits = torch.randn(2, 5, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(both_losses, logits)


@pytest.mark.parametrize(
    "after", [lambda logits: logits / 2, lambda logits: logits.tanh(), lambda logits: logits.mul_(2)]
)
def test_logits_that_a_model_changes_after_its_output_layer_are_used_unchanged(after):
    expected, _ = gradients(TinyLMM(after=after), None)
    lmm = TinyLMM(after=after)
    found, behind = gradients(lmm, LogitTap(lmm.head))
    assert type(behind.grad_fn).__name__ != "_DenseGradientBackward"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_closed_tap_and_one_without_gradients_do_nothing():
    lmm = TinyLMM()
    tap = LogitTap(lmm.head)
    _, logits = lmm(torch.zeros(1, 2, 6))
    assert type(logits.grad_fn).__name__ != "_DenseGradientBackward" and tap.find_tapped_logits(logits) is logits
    with tap, torch.no_grad():
        _, logits = lmm(torch.zeros(1, 2, 6))
        assert tap.find_tapped_logits(logits) is logits
    assert tap._logits is None


def test_logits_on_another_device_than_the_tapped_ones_are_used_unchanged():
    """As of a model on two cards, whose logits accelerate moves by a cast that looks like one to float32."""
    head = torch.nn.Linear(4, 8)
    tap = LogitTap(head)
    with tap:
        logits = head(torch.randn(1, 3, 4))
        moved, cast = logits.to("meta"), logits.double()
        assert tap.find_tapped_logits(moved) is moved
        assert tap.find_tapped_logits(cast) is not cast
