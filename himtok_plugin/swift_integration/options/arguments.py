"""The plugin's options: type, default, meaning and valid range of each.

Contract: `HimTokArguments` lists every option. `swift_arguments.py` makes them fields of ms-swift's argument classes:
parsed, shown by `--help`, saved in `args.json`.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from himtok_plugin.mask_text import MAX_MASK_TOKENS

from .checkpoint_settings import DEFAULT_DECODING

MAX_COARSE_LEVELS = MAX_MASK_TOKENS - 1  # a prefix must leave out at least one token
DEFAULT = "default"  # --model: the checkpoint that ships with the package
REFINERS = ("none", "sam", "sam2", "sam3", "zoom")
OWN_ENGINE = ("transformers", "pt")  # values of --infer_backend; the latter is ms-swift 3's
_current: list[Any] = []  # at most one, see `current_arguments`


def _option(default: Any, meaning: str) -> Any:
    metadata = {"help": meaning}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class HimTokArguments:
    """Options of `--plugin himtok`. A mix-in for ms-swift's `TemplateArguments`, so every field has a default."""

    mask_tokenizer: str | None = _option(
        None, "Folder or hub id of the mask tokenizer. None: the folder mask_tokenizer/ beside the checkpoint."
    )
    mask_rows_init: Literal["codebook", "noise"] = _option(
        "codebook",  # three seeds each: cIoU 0.260 and 0.229 after 200 steps, alike after 400
        "How new embedding rows begin: the old rows' mean plus their code's place in the codebook, or plus noise.",
    )

    # Datasets by name
    data_root: list[str] = _option(
        [], "Folder of the datasets that are named in --dataset (refcoco:train), or NAME=DIR for single ones."
    )
    data_tasks: list[str] = _option(
        [], "What is asked of them: NAME or NAME=SHARE, as --task of `himtok prepare`. Empty: each one's own default."
    )

    # Stage 2
    mask_loss_weight: float = _option(0.0, "Weight of BCE + Dice on the full predicted mask, >= 0. Stage 2 uses 1.0.")
    hierarchical_loss_weight: float = _option(0.0, "Weight of the same loss on coarse levels, >= 0. Stage 2 uses 1.0.")
    mask_dice_weight: float = _option(0.25, "Weight of Dice beside BCE in every mask loss, >= 0.")
    num_coarse_levels: int = _option(3, f"Coarse levels drawn per step, 1 to {MAX_COARSE_LEVELS}.")
    train_detokenizer: bool | None = _option(
        None, "Whether the de-tokenizer is trained with the LMM. None: exactly when a mask loss weight is above 0."
    )
    detokenizer_lr: float | None = _option(None, "Learning rate of the de-tokenizer, > 0. None: --learning_rate.")
    mask_rows_lr: float | None = _option(
        None, "Learning rate of the mask tokens' embedding rows, input and output, > 0. None: --learning_rate."
    )

    # Inference
    mask_decoding: Literal["soft", "hard"] | None = _option(
        None,
        "Masks from the code probabilities recorded while generating (soft) or from the codes alone (hard). None: as "
        "the checkpoint's generation_config.json says, else soft.",
    )
    num_mask_tokens: int | None = _option(
        None,
        "At most so many tokens per generated mask, >= 1. None: as the checkpoint's generation_config.json says, else "
        "as many as the mask tokenizer has.",
    )
    constrained_decoding: bool = _option(True, "Whether generation keeps to the grammar of mask text.")
    min_masks: int = _option(0, "Masks of a generated answer at least, >= 0. As many as --max_masks: exactly so many.")
    max_masks: int | None = _option(None, "Masks of a generated answer at most, >= 0. 0: none at all. None: no limit.")
    mask_labels: bool = _option(False, "Whether generated answers are lines of `label: MASK` and nothing else.")
    mask_early_stop: float | None = _option(
        None,
        "A generated mask ends when the normalised entropy of its next code is at least this, between 0 and 1; with "
        "ms-swift's own engine only. None: never.",
    )
    mask_threshold: float = _option(0.5, "Mask probability from which a pixel belongs to the mask, between 0 and 1.")
    mask_resize: Literal["bilinear", "nearest"] = _option(
        "bilinear", "How mask probabilities get to the image's size before the threshold; nearest is the paper's code."
    )
    mask_dir: str | None = _option(None, "Folder into which inference writes masks and overlays as PNG. None: nowhere.")
    min_score: float = _option(
        0.0, "Predicted masks with a lower score are left out of `masks`, from 0 to 1; the text stays. 0: all are kept."
    )
    resume_result: bool = _option(
        False, "Whether `swift infer` leaves out rows with masks that its result file has already."
    )
    refiner: Literal["none", "sam", "sam2", "sam3", "zoom"] = _option(
        "none", "Second look at predicted masks: a model of transformers prompted with them, or the LMM on their crops."
    )
    refiner_model: str | None = _option(
        None, "Folder or hub id of the refiner's weights. None: the largest released ones of its kind."
    )

    # Serving
    mask_previews: list[int] = _option(
        [], "Numbers of tokens after which `swift deploy` previews a mask in a stream, each >= 1; requests may differ."
    )
    max_image_pixels: int = _option(2**25, "Most pixels of an image in a request to `swift deploy`, >= 1.")
    max_request_masks: int = _option(16, "Most masks that a request to `swift deploy` may bring along, >= 0.")

    # Reinforcement learning
    reward_prefix_weight: float = _option(
        0.25, "Share of the reward mask_iou that masks of the answer's first 1, 2, 4, ... tokens earn, from 0 to 1."
    )

    # Stage 1
    commitment_weight: float = _option(0.25, "Weight of the pull of latents towards their codes, >= 0.")
    codebook_weight: float = _option(1.0, "Weight of the pull of codes towards their latents, >= 0.")
    entropy_weight: float = _option(0.0, "Weight of the term that favours even use of the codes, >= 0.")
    prefix_loss_weight: float = _option(1.0, "Weight of the reconstruction from random prefixes, >= 0.")
    continuous_warmup_steps: int = _option(0, "Steps without quantization before the k-means start of the codes, >= 0.")
    dead_code_steps: int = _option(100, "A code unused for so many steps is revived, >= 0. 0: never.")

    def __post_init__(self):
        for name in ("data_root", "data_tasks"):
            value = getattr(self, name)
            value = [value] if isinstance(value, str) else value
            _expect(isinstance(value, list) and all(isinstance(v, str) for v in value), name, value, "a list of texts")
            setattr(self, name, value)
        if self.mask_decoding is None:
            self.mask_decoding = DEFAULT_DECODING
        for name in (
            "mask_loss_weight",
            "hierarchical_loss_weight",
            "mask_dice_weight",
            "commitment_weight",
            "codebook_weight",
            "entropy_weight",
            "prefix_loss_weight",
        ):
            value = getattr(self, name)
            _expect(_is_number(value) and value >= 0, name, value, "a finite number >= 0")
        for name in ("detokenizer_lr", "mask_rows_lr"):
            value = getattr(self, name)
            _expect(value is None or (_is_number(value) and value > 0), name, value, "a finite number > 0 or None")
        for name in ("continuous_warmup_steps", "dead_code_steps", "max_request_masks"):
            value = getattr(self, name)
            _expect(_is_integer(value) and value >= 0, name, value, "an integer >= 0")
        pixels = self.max_image_pixels
        _expect(_is_integer(pixels) and pixels >= 1, "max_image_pixels", pixels, "an integer >= 1")
        previews = self.mask_previews
        _expect(
            isinstance(previews, list) and all(_is_integer(n) and n >= 1 for n in previews),
            "mask_previews",
            previews,
            "integers >= 1",
        )
        levels = self.num_coarse_levels
        _expect(
            _is_integer(levels) and 1 <= levels <= MAX_COARSE_LEVELS,
            "num_coarse_levels",
            levels,
            f"an integer from 1 to {MAX_COARSE_LEVELS}",
        )
        limit = self.num_mask_tokens
        _expect(
            limit is None or (_is_integer(limit) and limit >= 1), "num_mask_tokens", limit, "an integer >= 1 or None"
        )
        self._check_grammar()
        threshold = self.mask_threshold
        _expect(
            _is_number(threshold) and 0 < threshold < 1,
            "mask_threshold",
            threshold,
            "a number between 0 and 1, both excluded",
        )
        start = self.mask_rows_init
        _expect(start in ("noise", "codebook"), "mask_rows_init", start, "'noise' or 'codebook'")
        _expect(self.mask_decoding in ("soft", "hard"), "mask_decoding", self.mask_decoding, "'soft' or 'hard'")
        resize = self.mask_resize
        _expect(resize in ("bilinear", "nearest"), "mask_resize", resize, "'bilinear' or 'nearest'")
        for name in ("min_score", "reward_prefix_weight"):
            value = getattr(self, name)
            _expect(_is_number(value) and 0 <= value <= 1, name, value, "a number from 0 to 1")
        _expect(self.refiner in REFINERS, "refiner", self.refiner, f"one of {', '.join(map(repr, REFINERS))}")
        self._check_zoom()
        self._check_training()
        # ms-swift's own default scores text, with a library that is not among its requirements.
        if getattr(self, "predict_with_generate", False) and getattr(self, "eval_metric", None) is None:
            self.eval_metric = "mask"
            if self.metric_for_best_model is None:
                self.metric_for_best_model = "cIoU"
        set_current_arguments(self)

    def _check_grammar(self) -> None:
        least, most, early = self.min_masks, self.max_masks, self.mask_early_stop
        _expect(_is_integer(least) and least >= 0, "min_masks", least, "an integer >= 0")
        _expect(
            most is None or (_is_integer(most) and most >= least),
            "max_masks",
            most,
            f"an integer >= min_masks={least} or None",
        )
        _expect(not (self.mask_labels and most == 0), "max_masks", most, "at least 1 with mask_labels")
        _expect(
            early is None or (_is_number(early) and 0 < early < 1),
            "mask_early_stop",
            early,
            "a number between 0 and 1, both excluded, or None",
        )
        asked = least > 0 or most is not None or self.mask_labels or early is not None
        _expect(
            self.constrained_decoding or not asked,
            "constrained_decoding",
            self.constrained_decoding,
            "True with min_masks, max_masks, mask_labels or mask_early_stop",
        )

    def _check_zoom(self) -> None:
        """A second look at crops is taken by ms-swift's own engine, at whole answers."""
        backend = getattr(self, "infer_backend", None)
        if self.refiner != "zoom" or backend is None:
            return
        _expect(backend in OWN_ENGINE, "infer_backend", backend, "'transformers' with --refiner zoom")
        stream = getattr(self, "stream", None)
        _expect(not stream, "stream", stream, "False with --refiner zoom, which looks at whole answers")
        self.stream = False  # in a dialogue None would stream

    def _check_training(self) -> None:
        """Options that would teach nothing; those of a checkpoint that is only used say what it was trained with."""
        kinds = {each.__name__ for each in type(self).__mro__}
        if "SftArguments" not in kinds:
            return
        if "RLHFArguments" in kinds:
            for name in ("mask_loss_weight", "hierarchical_loss_weight"):
                _expect(
                    getattr(self, name) == 0, name, getattr(self, name), "0 with `swift rlhf`, which has no mask loss"
                )
        if self.trains_on_masks:
            return
        needed = "with a mask loss only (--mask_loss_weight, --hierarchical_loss_weight)"
        _expect(not self.train_detokenizer, "train_detokenizer", self.train_detokenizer, f"true {needed}")
        idle = self.detokenizer_lr is None or self.train_detokenizer is False
        _expect(idle, "detokenizer_lr", self.detokenizer_lr, f"one {needed}, or --train_detokenizer false")

    @property
    def trains_on_masks(self) -> bool:
        """Whether a mask loss is part of the training loss (stage 2)."""
        return self.mask_loss_weight > 0 or self.hierarchical_loss_weight > 0

    @property
    def detokenizer_is_trained(self) -> bool:
        return self.trains_on_masks if self.train_detokenizer is None else self.train_detokenizer

    @property
    def adapter_folders(self) -> list[str]:
        """Folders of what is loaded on top of the model: adapters, or the checkpoint that a run is resumed from."""
        resumed = getattr(self, "resume_from_checkpoint", None)
        return [*(getattr(self, "adapters", None) or []), *([resumed] if resumed else [])]

    def options(self) -> "HimTokArguments":
        """These options alone, without ms-swift's: small, and picklable where ms-swift is not imported."""
        own = object.__new__(HimTokArguments)
        own.__dict__.update({f.name: getattr(self, f.name) for f in fields(HimTokArguments)})
        return own


def _expect(valid: bool, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def current_arguments() -> Any | None:
    """The argument object of this process whose options were validated last; None before there is one.

    ms-swift's model loaders are not given the arguments.
    """
    return _current[-1] if _current else None


def set_current_arguments(args: Any) -> None:
    """Make `args` what `current_arguments` returns."""
    _current[:] = [args]
