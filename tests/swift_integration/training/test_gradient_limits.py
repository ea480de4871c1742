"""The limits on the gradients of the mask losses: in the LMM, and in the de-tokenizer."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from runs import STAGE_TWO, logged

from himtok_plugin import MaskTokenizer

ONE_STEP = {"max_steps": 1, "max_grad_norm": 1e9}


@pytest.fixture
def rows(world):
    """Rows with two masks and with one."""
    return [
        world.row("<image>Both.", "<mask> <mask>", masks=[world.left, world.right]),
        world.row("<image>One.", "Here: <mask>", masks=[world.left]),
    ]


def test_the_gradient_of_the_mask_losses_is_balanced_in_any_split_of_a_step(train, rows, tmp_path):
    """With 0 it is that of the next-token loss, with a high ratio that without a limit."""

    def norm_and_scale(name, **options):
        result = train(rows, output_dir=tmp_path / name, **{**ONE_STEP, "per_device_train_batch_size": 2, **options})
        return logged(result, "grad_norm")[0], logged(result, "mask_gradient_scale")

    two = {**STAGE_TWO, "mask_loss_weight": 50, "train_detokenizer": False}
    next_token, _ = norm_and_scale("next_token")
    unlimited, scales = norm_and_scale("unlimited", **two)
    assert unlimited > 1.5 * next_token and not scales
    assert norm_and_scale("high", mask_gradient_ratio=1e6, **two) == (pytest.approx(unlimited, rel=1e-5), [1])
    assert norm_and_scale("zero", mask_gradient_ratio=0, **two) == (pytest.approx(next_token, rel=1e-5), [0])
    limited, (scale,) = norm_and_scale("limited", mask_gradient_ratio=0.5, **two)
    assert 0 < scale < 0.9 and abs(limited - next_token) < abs(unlimited - next_token)
    batches = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    split, _ = norm_and_scale("split", mask_gradient_ratio=0.5, **batches, **two)
    assert split == pytest.approx(limited, rel=1e-3)


def test_the_detokenizer_is_clipped_by_itself(train, rows, world, tmp_path):
    options = {**ONE_STEP, **STAGE_TWO, "optim": "sgd", "learning_rate": 1, "weight_decay": 0}
    together = train(rows, output_dir=tmp_path / "together", **options)
    saved = {"save_strategy": "steps", "save_steps": 1}
    apart = train(rows, detokenizer_max_grad_norm=0.01, output_dir=tmp_path / "apart", **saved, **options)
    of_lmm, own = (logged(apart, name)[0] for name in ("grad_norm", "detokenizer_grad_norm"))
    assert math.hypot(of_lmm, own) == pytest.approx(logged(together, "grad_norm")[0], rel=1e-4) and own > 0.02
    before, after = (
        MaskTokenizer.from_pretrained(folder).state_dict()
        for folder in (world.mask_tokenizer, tmp_path / "apart" / "checkpoint-1")
    )
    moved = torch.cat([(value - before[name]).flatten() for name, value in after.items()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-2)


def test_a_gradient_that_is_not_a_number_skips_the_update_of_all_parameters():
    from accelerate import Accelerator

    from himtok_plugin.swift_integration.training.gradient_clipping import SeparateClipping

    accelerator, reported = Accelerator(cpu=True), []
    one, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    SeparateClipping([other], 1.0, reported.append).attach(accelerator)
    one.grad, other.grad = torch.ones(2), torch.full((2,), torch.nan)
    accelerator.clip_grad_norm_([one, other], 5.0)
    assert one.grad is None and other.grad is None and reported[0].isnan()
    one.grad, other.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    assert accelerator.clip_grad_norm_([one, other], 2.5) == 5
    torch.testing.assert_close(one.grad, torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(other.grad, torch.tensor([0.0, 1.0]))
    assert reported[1] == 2


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP])
def test_engines_that_shard_clip_all_gradients_as_one(kind):
    from himtok_plugin.swift_integration.training.gradient_clipping import SeparateClipping

    with pytest.raises(ValueError, match=f"^detokenizer_max_grad_norm: got 0.5 with {kind.value}, .*expected None"):
        SeparateClipping([], 0.5, print).attach(SimpleNamespace(distributed_type=kind))
