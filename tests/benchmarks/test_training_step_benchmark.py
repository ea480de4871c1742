"""`himtok bench step`: a whole training step, the same samples padded and packed, counted and timed."""

import json

import pytest
import torch

from himtok_plugin.benchmarks import training_step as benchmark_step
from himtok_plugin.benchmarks.random_lmm import count_parameters, lmm_config
from himtok_plugin.benchmarks.training_step import LAYOUTS, StepBenchmark, TrainingStep, measure_training_step

SMALL = {"lmm": "tiny", "size": "tiny", "batch": 3, "length": 40, "tokens": 8, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def step():
    return TrainingStep(StepBenchmark(**SMALL))


def test_padded_and_packed_samples_have_the_same_losses_and_gradients(step):
    codes, seen = step.encode(), []
    for layout in LAYOUTS:
        loss = step.loss(step.batch(layout), codes)
        loss.backward()
        seen.append([loss.detach(), *(p.grad.clone() for p in step.lmm.parameters() if p.grad is not None)])
        step.optimizer.zero_grad()
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_codes_are_between_start_and_end_and_have_labels(step):
    codes, first = step.encode(), step.first_code
    for layout in LAYOUTS:
        batch = step.batch(layout)
        ids, labels = (batch.inputs[name].flatten() for name in ("input_ids", "labels"))
        assert (ids[batch.positions[:, 0] - 1] == first - 2).all()
        assert (ids[batch.positions[:, -1] + 1] == first - 1).all()
        assert (labels != benchmark_step.IGNORED_LABEL).sum() == codes.numel() + 2 * len(codes)


def test_the_mask_loss_is_part_of_the_step_and_trains_the_detokenizer(step):
    batch, codes = step.batch("padded"), step.encode()
    assert step.loss(batch, codes) > step.loss(batch, codes, mask_loss=False)
    before = {name: value.clone() for name, value in step.mask_tokenizer.named_parameters()}
    step.run(batch)
    moved = {
        name.split(".")[0] for name, p in step.mask_tokenizer.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved == {"decoder", "pixel_decoder"}


def test_flops_are_those_of_the_matrix_products(step):
    """Of a language model alone, two for each weight and token, and those of attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    text, n = step.lmm.config.text_config, 40
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.lmm(input_ids=torch.zeros(1, n, dtype=torch.int64), use_cache=False)
    layers = [m for m in step.lmm.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers) + step.lmm.lm_head.weight.numel()
    attention = 4 * n * n * text.head_dim * text.num_attention_heads * text.num_hidden_layers
    # Some releases of transformers compute the angles of RoPE by a product as well.
    assert counter.get_total_flops() == pytest.approx(2 * n * weights + attention, rel=1e-3)
    assert step.flops() > 6 * sum(len(sample) for sample in step.samples) * weights


def test_the_result_has_all_measurements():
    progress = []
    settings = StepBenchmark(**SMALL, repeats=1, peak_tflops=1e-3)
    result = measure_training_step(settings, lambda *counts: progress.append(counts))
    assert progress == [(i + 1, 8) for i in range(8)]
    assert result["tokens"] == 40 + 27 + 15
    for layout in LAYOUTS:
        row = result[layout]
        assert row["tokens_per_second"] == pytest.approx(result["tokens"] / row["seconds"])
        assert row["mask_loss_share"] == pytest.approx(1 - row["seconds_without_mask_loss"] / row["seconds"])
        assert row["model_flops_utilisation"] == pytest.approx(result["tflops"] / row["seconds"] / 1e-3)
        held = 4 * 3 * result["parameters"]["lmm"]  # weights and AdamW's states
        assert row["peak_gib"] * 2**30 > held
    json.dumps(result)


def test_named_sizes_have_about_that_many_parameters():
    assert 0.8e9 < count_parameters(lmm_config("1b")) < 1.2e9
    assert 1.8e9 < count_parameters(lmm_config("2b")) < 2.4e9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lmm": "9b"}, "lmm: got '9b', expected one of"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"batch": 0}, "batch: got 0, expected an integer >= 1"),
        ({"tokens": 3}, "tokens: got 3"),
        ({"length": 14}, "length: got 14, expected an integer >= 15"),
        ({"peak_tflops": 0.0}, "peak_tflops: got 0.0, expected a number > 0"),
    ],
)
def test_settings_that_cannot_be_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        StepBenchmark(**{**SMALL, **fields})


def test_settings_that_need_too_much_memory_are_rejected():
    with pytest.raises(ValueError, match="lmm='2b': a step needs about .* GiB on cpu"):
        TrainingStep(StepBenchmark(batch=10_000, device="cpu"))
