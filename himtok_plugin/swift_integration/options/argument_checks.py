"""Validation of the plugin's options.

Contract: `check_arguments` raises a `ValueError` of the form `field: got VALUE, expected WHAT` for the first invalid
option. It takes an object with all fields of `HimTokArguments`; where that object has ms-swift's fields as well, it
also checks that both fit together.
"""

import math
from typing import Any

from himtok_plugin.mask_text import MAX_MASK_TOKENS

from .adapter_checks import check_adapters
from .deepspeed_checkpoints import uses_zero3

MAX_COARSE_LEVELS = MAX_MASK_TOKENS - 1  # a prefix must leave out at least one token
REFINERS = ("none", "sam", "sam2", "sam3", "zoom")
NATIVE_BACKENDS = ("transformers", "pt")  # --infer_backend of ms-swift's own engine; "pt" is ms-swift 3's name for it

_WEIGHTS = (
    "mask_loss_weight",
    "hierarchical_loss_weight",
    "mask_dice_weight",
    "commitment_weight",
    "codebook_weight",
    "entropy_weight",
    "prefix_loss_weight",
)
_COUNTS_FROM_0 = (
    "continuous_warmup_steps",
    "dead_code_steps",
    "max_request_images",
    "max_request_masks",
    "max_outline_sides",
    "shutdown_seconds",
)
_COUNTS_FROM_1 = (
    "max_image_pixels",
    "max_request_pixels",
    "max_request_bytes",
    "max_choices",
    "max_beams",
    "max_answer_tokens",
    "max_active_requests",
    "answer_threads",
)
_CHOICES = {
    "mask_rows_init": ("noise", "codebook"),
    "mask_decoding": ("soft", "hard"),
    "mask_resize": ("bilinear", "nearest"),
    "refiner": REFINERS,
}


def check_arguments(args: Any) -> None:
    """Check all options of `args`.

    Raises:
        ValueError: an option is invalid or contradicts another one.
    """
    _check_lists(args)
    _check_numbers(args)
    _check_grammar(args)
    for name, choices in _CHOICES.items():
        value = getattr(args, name)
        if value not in choices:
            listed = " or ".join(map(repr, choices)) if len(choices) == 2 else f"one of {', '.join(map(repr, choices))}"
            raise ValueError(f"{name}: got {value!r}, expected {listed}")
    _check_zoom(args)
    _check_trained_parts(args)
    _check_training_engine(args)
    check_adapters(args)


def _check_lists(args: Any) -> None:
    for name in ("data_root", "data_tasks"):
        value = getattr(args, name)
        _expect(isinstance(value, list) and all(isinstance(v, str) for v in value), name, value, "a list of texts")
    previews = args.mask_previews
    _expect(
        isinstance(previews, list) and all(_is_integer(n) and n >= 1 for n in previews),
        "mask_previews",
        previews,
        "integers >= 1",
    )


def _check_numbers(args: Any) -> None:
    for name in _WEIGHTS:
        value = getattr(args, name)
        _expect(_is_number(value) and value >= 0, name, value, "a finite number >= 0")
    ratio = args.mask_gradient_ratio
    _expect(
        ratio is None or (_is_number(ratio) and ratio >= 0),
        "mask_gradient_ratio",
        ratio,
        "a finite number >= 0 or None",
    )
    for name in ("detokenizer_lr", "detokenizer_max_grad_norm", "mask_rows_lr"):
        value = getattr(args, name)
        _expect(value is None or (_is_number(value) and value > 0), name, value, "a finite number > 0 or None")
    scale = args.mask_rows_scale
    _expect(_is_number(scale) and scale > 0, "mask_rows_scale", scale, "a finite number > 0")
    for name in _COUNTS_FROM_0:
        value = getattr(args, name)
        _expect(_is_integer(value) and value >= 0, name, value, "an integer >= 0")
    for name in _COUNTS_FROM_1:
        value = getattr(args, name)
        _expect(_is_integer(value) and value >= 1, name, value, "an integer >= 1")
    levels = args.num_coarse_levels
    _expect(
        _is_integer(levels) and 1 <= levels <= MAX_COARSE_LEVELS,
        "num_coarse_levels",
        levels,
        f"an integer from 1 to {MAX_COARSE_LEVELS}",
    )
    limit = args.num_mask_tokens
    _expect(limit is None or (_is_integer(limit) and limit >= 1), "num_mask_tokens", limit, "an integer >= 1 or None")
    threshold = args.mask_threshold
    _expect(
        _is_number(threshold) and 0 < threshold < 1,
        "mask_threshold",
        threshold,
        "a number between 0 and 1, both excluded",
    )
    for name in ("min_score", "reward_prefix_weight"):
        value = getattr(args, name)
        _expect(_is_number(value) and 0 <= value <= 1, name, value, "a number from 0 to 1")


def _check_grammar(args: Any) -> None:
    """Check the options that constrain generated answers."""
    least, most, early = args.min_masks, args.max_masks, args.mask_early_stop
    _expect(_is_integer(least) and least >= 0, "min_masks", least, "an integer >= 0")
    _expect(
        most is None or (_is_integer(most) and most >= least),
        "max_masks",
        most,
        f"an integer >= min_masks={least} or None",
    )
    _expect(not (args.mask_labels and most == 0), "max_masks", most, "at least 1 with mask_labels")
    _expect(
        early is None or (_is_number(early) and 0 < early < 1),
        "mask_early_stop",
        early,
        "a number between 0 and 1, both excluded, or None",
    )
    is_constrained = least > 0 or most is not None or args.mask_labels or early is not None
    _expect(
        args.constrained_decoding or not is_constrained,
        "constrained_decoding",
        args.constrained_decoding,
        "True with min_masks, max_masks, mask_labels or mask_early_stop",
    )


def _check_zoom(args: Any) -> None:
    """`--refiner zoom` needs ms-swift's own engine and complete answers."""
    backend = getattr(args, "infer_backend", None)
    if args.refiner != "zoom" or backend is None:
        return
    _expect(backend in NATIVE_BACKENDS, "infer_backend", backend, "'transformers' with --refiner zoom")
    stream = getattr(args, "stream", None)
    _expect(not stream, "stream", stream, "False with --refiner zoom, which needs complete answers")


def _check_trained_parts(args: Any) -> None:
    """Refuse options of a training run that would have no effect.

    Other commands read these options from a checkpoint, where they describe the run that made it.
    """
    classes = {each.__name__ for each in type(args).__mro__}
    if "SftArguments" not in classes:
        return
    if "RLHFArguments" in classes:
        for name in ("mask_loss_weight", "hierarchical_loss_weight"):
            value = getattr(args, name)
            _expect(value == 0, name, value, "0 with `swift rlhf`, which has no mask loss")
    max_norm = getattr(args, "max_grad_norm", 1.0)
    clips = args.detokenizer_max_grad_norm is None or bool(max_norm)
    _expect(clips, "max_grad_norm", max_norm, "a number > 0 with --detokenizer_max_grad_norm")
    if args.trains_on_masks:
        return
    needed = "with a mask loss only (--mask_loss_weight, --hierarchical_loss_weight)"
    _expect(not args.train_detokenizer, "train_detokenizer", args.train_detokenizer, f"true {needed}")
    ratio = args.mask_gradient_ratio
    _expect(ratio is None, "mask_gradient_ratio", ratio, f"None, or one {needed}")
    for name in ("detokenizer_lr", "detokenizer_max_grad_norm"):
        value = getattr(args, name)
        is_unused = value is None or args.train_detokenizer is False
        _expect(is_unused, name, value, f"None, or one {needed}, or --train_detokenizer false")


def _check_training_engine(args: Any) -> None:
    """Refuse kernels and sharding with which a training run would fail later, or wait forever."""
    if "SftArguments" not in {each.__name__ for each in type(args).__mro__}:
        return
    if args.trains_on_masks:
        liger = getattr(args, "use_liger_kernel", False)
        _expect(not liger, "use_liger_kernel", liger, "false with a mask loss, which needs the logits that Liger skips")
    answers = getattr(args, "predict_with_generate", False)
    is_rollout = getattr(args, "rlhf_type", None) == "grpo" or (
        getattr(args, "rlhf_type", None) == "gkd" and getattr(args, "lmbda", 0) > 0
    )
    if getattr(args, "fsdp", None):
        # ms-swift embeds the images of a request before the model's forward pass, where FSDP's weights are shards.
        name = "predict_with_generate" if answers else f"rlhf_type {args.rlhf_type}" if is_rollout else ""
        generates = answers or (is_rollout and not getattr(args, "use_vllm", False))
        _expect(
            not generates,
            "fsdp",
            args.fsdp,
            f"None with {name} in ms-swift's own engine, which cannot generate with sharded weights: use --deepspeed",
        )
    gathers = getattr(args, "ds3_gather_for_generation", True)
    if answers and args.trains_on_masks and uses_zero3(getattr(args, "deepspeed", None)):
        # A process whose answers have no mask would not take part in gathering the de-tokenizer.
        _expect(
            gathers, "ds3_gather_for_generation", gathers, "true with ZeRO-3, predict_with_generate and a mask loss"
        )


def _expect(valid: bool, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))
