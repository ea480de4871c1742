"""`himtok bench loss`: both implementations agree, and only memory of the mask loss is counted."""

import json

import pytest
import torch

from himtok_plugin.benchmarks import mask_loss as benchmark
from himtok_plugin.benchmarks.loss_problem import LossBenchmark, StandInLMM, build_problem
from himtok_plugin.benchmarks.mask_loss import LossSteps, measure_mask_loss
from himtok_plugin.benchmarks.measuring import measure_peak_memory, random_squares
from himtok_plugin.lmm.logit_tap import LogitTap, gather_mask_logits

SMALL = {"batch": 2, "length": 24, "vocabulary": 1500, "tokens": 8, "device": "cpu", "repeats": 1}


@pytest.fixture(scope="module")
def steps():
    return LossSteps(build_problem(LossBenchmark(**SMALL, dtype="float32")))


def gradients(steps, name):
    steps.reset()
    loss = steps.run(name)
    parameters = [p for p in steps.problem.mask_tokenizer.parameters() if p.requires_grad]
    return loss, steps.problem.lmm.gradient.clone(), torch.cat([p.grad.flatten() for p in parameters])


def test_both_implementations_have_the_same_loss_and_gradients(steps):
    ours, plain = (gradients(steps, name) for name in benchmark.IMPLEMENTATIONS)
    assert ours[0] > 0
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    gradient = ours[1]
    outside = torch.ones_like(gradient, dtype=torch.bool)
    outside[..., steps.problem.code_ids] = ~steps.problem.predicts[..., None]
    assert not gradient[outside].any() and gradient[~outside].any()


def test_the_plain_blur_equals_the_separable_one(steps):
    from himtok_plugin.hierarchical_loss import coarse_target

    square = random_squares(1, 48)[0]
    for sigma in (0.4, 1.0, 5.3):
        torch.testing.assert_close(benchmark._plain_blur(square, sigma), coarse_target(square, sigma=sigma))


def test_the_gradient_is_added_to_the_existing_buffer(steps):
    steps.reset()
    address = steps.problem.lmm.gradient.data_ptr()  # a tensor held here would not be autograd's alone
    steps.run("himtok")
    assert steps.problem.lmm.gradient.data_ptr() == address and steps.problem.lmm.gradient.any()


def test_the_mask_loss_makes_no_gradient_as_large_as_the_logits():
    """It stays far below the size of the logits, where a plain slice of them is as large."""
    vocabulary, code_ids, rows = 200_000, slice(7, 20), torch.tensor([1, 4])

    def peak(tapped):
        lmm = StandInLMM(torch.randn(1, 5, vocabulary))
        tap = LogitTap(lmm)

        def step():
            with tap:
                logits = lmm()
                next_token = lmm.next_token_loss(logits)
                source = tap.find_tapped_logits(logits) if tapped else logits.view_as(logits)
                gathered = gather_mask_logits(source, code_ids, rows)
            (next_token + gathered.sum()).backward()

        return measure_peak_memory(step, torch.device("cpu"))

    size = 5 * vocabulary * 4
    assert peak(True) < 0.01 * size and peak(False) > 0.99 * size


def test_the_result_has_settings_both_implementations_and_both_ratios():
    progress = []
    result = measure_mask_loss(LossBenchmark(**{**SMALL, "repeats": 2}), lambda *counts: progress.append(counts))
    assert set(result) == {"settings", "himtok", "plain", "ratio_seconds", "ratio_peak_extra_memory"}
    assert set(result["himtok"]) == set(result["plain"]) == {"loss", "seconds", "peak_extra_mib"}
    assert result["settings"]["device"] == "cpu" and result["settings"]["vocabulary"] == 1500
    assert result["ratio_seconds"] == result["plain"]["seconds"] / result["himtok"]["seconds"]
    # In bfloat16 the de-tokenizer rounds, and not alike for a batch and for one mask.
    assert result["himtok"]["loss"] == pytest.approx(result["plain"]["loss"], rel=0.05)
    assert progress == [(i + 1, 6) for i in range(6)]
    json.dumps(result)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch: got 0"),
        ({"length": 8}, "length: got 8, expected an integer >= 9"),
        ({"vocabulary": 1000}, "vocabulary: got 1000"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"size": "huge"}, "size: got 'huge', expected one of tiny, pocket, box, small"),
        ({"device": "abacus"}, "device: got 'abacus'"),
    ],
)
def test_settings_that_cannot_be_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        measure_mask_loss(LossBenchmark(**{**SMALL, **fields}))


def test_settings_that_need_too_much_memory_are_rejected():
    with pytest.raises(ValueError, match="needs about .* GiB on cpu"):
        measure_mask_loss(LossBenchmark(batch=10_000, length=100_000, device="cpu"))
