"""gradient_balance.py: at each mask's logits, the gradient of the mask losses is limited to a multiple of the other."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from himtok_plugin.hierarchical_loss import code_probabilities
from himtok_plugin.lmm.gradient_balance import GradientBalance
from himtok_plugin.lmm.logit_tap import LogitTap, gather_mask_logits

CODES, K = slice(5, 9), 2
POSITIONS = torch.tensor([1, 2, 7, 8])  # of two masks
WEIGHTS = (300.0, 0.01)  # of the mask losses: the first mask's gradient is larger than that of the next-token loss
FORMS = {
    "as_is": lambda logits: logits,
    "cast": lambda logits: logits.float(),
    "changed": lambda logits: logits.tanh() * 3,
    "changed_and_cast": lambda logits: (logits / 2).double(),
}


def losses(head, balance, form, tapped=True):
    """Return next-token loss, mask loss and logits. The hidden states are unit vectors."""
    tap = LogitTap(head if tapped else torch.nn.Identity())
    with tap:
        logits = form(head(torch.eye(10, dtype=head.weight.dtype).unflatten(0, (2, 5))))
        next_token = F.cross_entropy(logits.flatten(0, 1).float(), torch.arange(10))
        gathered = gather_mask_logits(tap.find_tapped_logits(logits), CODES, POSITIONS, balance)
        masks = code_probabilities(gathered).unflatten(0, (-1, K))[..., 0] ** 2
        return next_token, (masks.sum(dim=1) * torch.tensor(WEIGHTS)).sum(), logits


def gradients(ratio, form="as_is", dtype=torch.float32, **options):
    """Gradients at the output layer: next-token loss, mask loss, both with the balance; and the norms of the masks.

    The output layer's gradient is that of its output, because its inputs are unit vectors.
    """
    torch.manual_seed(0)
    head, reported = torch.nn.Linear(10, 20, bias=False, dtype=dtype), []
    found, norms = [], []
    for i in range(2):
        *both, logits = losses(head, None, FORMS[form], tapped=False)
        at_logits, weight = torch.autograd.grad(both[i], [logits, head.weight])
        masks = at_logits[..., CODES].flatten(0, 1)[POSITIONS].unflatten(0, (-1, K))
        norms.append(masks.double().flatten(1).norm(dim=1))
        found.append(weight.T.double())
    next_token, mask_loss, _ = losses(head, GradientBalance(ratio, K, reported.append), FORMS[form], **options)
    (both,) = torch.autograd.grad(next_token + mask_loss, head.weight)
    return *found, both.T.double(), *norms, reported


@pytest.mark.parametrize("tapped", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_each_mask_is_limited_to_the_ratio(dtype, form, tapped):
    ratio = 0.5
    next_token, mask_loss, both, limits, norms, reported = gradients(ratio, form, dtype, tapped=tapped)
    factors = (ratio * limits / norms).clamp(max=1)
    assert factors[0] < 0.1 and factors[1] == 1
    rows = torch.ones(10, 1, dtype=torch.float64)
    rows[POSITIONS, 0] = factors.repeat_interleave(K)
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(both, next_token + rows * mask_loss, **tolerance)
    assert float(reported[0]) == pytest.approx(float(factors.mean()), rel=2e-2)


@pytest.mark.parametrize("form", FORMS)
def test_with_a_large_ratio_nothing_changes(form):
    next_token, mask_loss, both, *_, reported = gradients(1e6, form)
    torch.testing.assert_close(both, next_token + mask_loss, rtol=1e-5, atol=1e-6)
    assert reported == [1]


def test_with_ratio_0_the_mask_losses_do_not_reach_the_lmm():
    next_token, _, both, *_ = gradients(0)
    torch.testing.assert_close(both, next_token, rtol=1e-5, atol=1e-6)


def test_the_norms_have_the_ratio_exactly():
    gradient, other = torch.randn(8, 4), torch.randn(8, 4)
    limited = GradientBalance(0.1, 4, lambda scale: None)(gradient, other)
    of_masks = [each.unflatten(0, (2, 4)).flatten(1).norm(dim=1) for each in (limited, other)]
    torch.testing.assert_close(of_masks[0], 0.1 * of_masks[1])
    assert F.cosine_similarity(limited.flatten(), gradient.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_give_zeros_and_what_is_not_finite_stays_so(dtype):
    reported = []
    balance = GradientBalance(1.0, 2, reported.append)
    zeros, some = torch.zeros(4, 3, dtype=dtype), torch.full((4, 3), 3.0, dtype=dtype)
    assert balance(zeros, zeros).eq(0).all() and balance(zeros, some).eq(0).all() and balance(some, zeros).eq(0).all()
    assert [float(each) for each in reported] == [1, 1, 0]
    for value in (torch.inf, torch.nan):  # a GradScaler has to see it
        assert not balance(torch.full_like(some, value), some).isfinite().any()
    assert balance(some, some).dtype == dtype


def test_the_gradient_does_not_depend_on_how_masks_are_split():
    gradient, other = torch.randn(8, 4) * torch.arange(1, 9)[:, None], torch.randn(8, 4)
    balance = GradientBalance(0.5, 2, lambda scale: None)
    parts = [balance(gradient[part], other[part]) for part in (slice(0, 2), slice(2, 8))]
    torch.testing.assert_close(torch.cat(parts), balance(gradient, other))


@pytest.mark.parametrize("form", FORMS)
def test_a_next_token_loss_on_other_logits_is_refused(form):
    head = torch.nn.Linear(10, 20, bias=False)
    _, mask_loss, _ = losses(head, GradientBalance(1.0, K, lambda scale: None), FORMS[form])
    with pytest.raises(RuntimeError, match="got logits without a gradient of the next-token loss"):
        mask_loss.backward()


def test_logits_that_a_wrapper_copies_are_balanced_where_the_loss_uses_them():
    """As DDP does, behind the LMM, which has computed its loss."""

    class LMM(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(10, 20, bias=False)

        def forward(self, hidden):
            logits = self.head(hidden)
            return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits.flatten(0, 1), torch.arange(10)))

    lmm, found = LMM(), []
    tap = LogitTap(lmm.head, lmm)
    for wrapped in (False, True):
        with tap:
            outputs = lmm(torch.eye(10).unflatten(0, (2, 5)))
            logits = outputs.logits.clone() if wrapped else outputs.logits
            balance, origin = GradientBalance(0.5, K, lambda scale: None), tap.find_origin(logits)
            gathered = gather_mask_logits(tap.find_tapped_logits(logits), CODES, POSITIONS, balance, origin)
            total = outputs.loss + 300 * (code_probabilities(gathered) ** 2).sum()
        found.append(torch.autograd.grad(total, lmm.head.weight)[0])
    torch.testing.assert_close(found[1], found[0])
    assert tap.find_origin(logits) is logits


def test_without_gradients_the_logits_are_gathered_as_before():
    head = torch.nn.Linear(10, 20, bias=False)
    with torch.no_grad():
        _, expected, _ = losses(head, None, FORMS["as_is"])
        _, found, _ = losses(head, GradientBalance(1.0, K, lambda scale: None), FORMS["as_is"])
    assert torch.equal(found, expected)


def test_the_gradient_is_added_in_place():
    """No second gradient of the size of all logits: autograd adds the dense one to the sparse one in place."""
    from torch.profiler import ProfilerActivity, profile

    head = torch.nn.Linear(10, 20, bias=False, dtype=torch.bfloat16)
    next_token, mask_loss, _ = losses(head, GradientBalance(1.0, K, lambda scale: None), FORMS["cast"])
    total = next_token + mask_loss
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        total.backward()
    of_all_logits = [each.name for each in recorded.events() if each.input_shapes[:1] == [[2, 5, 20]]]
    assert "aten::add_" in of_all_logits
