"""The plugin's options: type, default, meaning and valid range of each.

Contract: `HimTokArguments` lists every option. `swift_arguments.py` makes them fields of ms-swift's argument classes,
which parse them, show them in `--help` and save them in `args.json`. `argument_checks.py` validates them.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .argument_checks import MAX_COARSE_LEVELS, check_arguments
from .checkpoint_settings import DEFAULT_DECODING
from .current_arguments import set_current_arguments

SHIPPED_CHECKPOINT = "default"  # value of --model for the checkpoint that ships with the package


def _option(default: Any, meaning: str) -> Any:
    metadata = {"help": meaning}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class HimTokArguments:
    """Options of `--plugin himtok`, a mix-in for ms-swift's `TemplateArguments`: every field needs a default."""

    mask_tokenizer: str | None = _option(
        None, "Folder or hub id of the mask tokenizer. None: the folder mask_tokenizer/ in the checkpoint."
    )
    mask_rows_init: Literal["codebook", "noise"] = _option(
        "codebook",  # three seeds each: cIoU 0.260, with noise 0.229 after 200 steps; no difference after 400
        "Initial embeddings of new mask tokens: the mean of the other token embeddings plus a random projection of the "
        "code vector (codebook) or plus noise (noise).",
    )
    mask_rows_scale: float = _option(
        0.1,
        "How far these embeddings are from that mean, in standard deviations of the other token embeddings, > 0.",
    )

    # Datasets that are named in --dataset
    data_root: list[str] = _option(
        [], "Folder that holds the datasets named in --dataset (refcoco:train), or NAME=DIR for one dataset."
    )
    data_tasks: list[str] = _option(
        [],
        "Tasks made from them: NAME or NAME=SHARE, as `himtok prepare --task`. Empty: the default of each dataset.",
    )

    # Stage 2
    mask_loss_weight: float = _option(0.0, "Weight of BCE + Dice on the full predicted mask, >= 0. Stage 2 uses 1.0.")
    hierarchical_loss_weight: float = _option(0.0, "Weight of the same loss on coarse levels, >= 0. Stage 2 uses 1.0.")
    mask_dice_weight: float = _option(0.25, "Weight of Dice relative to BCE in every mask loss, >= 0.")
    num_coarse_levels: int = _option(3, f"Coarse levels (prefix lengths) drawn per step, 1 to {MAX_COARSE_LEVELS}.")
    train_detokenizer: bool | None = _option(
        None, "Whether the de-tokenizer is trained together with the LMM. None: yes if a mask loss weight is above 0."
    )
    mask_gradient_ratio: float | None = _option(
        None,
        "Limit on the gradient of the mask losses at each mask's logits, as a multiple of the next-token loss's "
        "gradient there, >= 0. 0: the mask losses train the de-tokenizer alone. None: no limit. Stage 2 uses 0.3.",
    )
    detokenizer_max_grad_norm: float | None = _option(
        None,
        "Norm to which the de-tokenizer's gradient is clipped, > 0; --max_grad_norm is then for the LMM's alone. None: "
        "both are clipped as one.",
    )
    detokenizer_lr: float | None = _option(None, "Learning rate of the de-tokenizer, > 0. None: --learning_rate.")
    mask_rows_lr: float | None = _option(
        None, "Learning rate of the mask tokens' input and output embeddings, > 0. None: --learning_rate."
    )

    # Inference
    mask_decoding: Literal["soft", "hard"] | None = _option(
        None,
        "Decode masks from the code probabilities of the generation (soft) or from the generated codes alone (hard). "
        "None: the value in the checkpoint's generation_config.json, otherwise soft.",
    )
    num_mask_tokens: int | None = _option(
        None,
        "Maximum number of mask tokens per generated mask, >= 1. None: the value in the checkpoint's "
        "generation_config.json, otherwise that of the mask tokenizer.",
    )
    constrained_decoding: bool = _option(True, "Whether generation is constrained to well-formed mask text.")
    min_masks: int = _option(0, "Minimum number of masks in a generated answer, >= 0.")
    max_masks: int | None = _option(None, "Maximum number of masks in a generated answer, >= 0. None: no limit.")
    mask_labels: bool = _option(False, "Whether generated answers consist only of lines of the form `label: MASK`.")
    mask_early_stop: float | None = _option(
        None,
        "End a generated mask when the normalised entropy of its next code reaches this value, between 0 and 1. Only "
        "with ms-swift's own engine. None: never.",
    )
    mask_threshold: float = _option(0.5, "Mask probability at which a pixel belongs to the mask, between 0 and 1.")
    mask_resize: Literal["bilinear", "nearest"] = _option(
        "bilinear", "Interpolation of mask probabilities to the image's size. nearest: as in the authors' code."
    )
    mask_dir: str | None = _option(
        None, "Folder to which inference writes masks and overlays as PNG files. None: no files."
    )
    min_score: float = _option(
        0.0, "Omit predicted masks with a lower score from `masks`, from 0 to 1; the text stays unchanged. 0: keep all."
    )
    resume_result: bool = _option(
        False, "Whether `swift infer` skips samples with masks that already have a result in the result file."
    )
    refiner: Literal["none", "sam", "sam2", "sam3", "zoom"] = _option(
        "none", "Refinement of predicted masks: by a SAM model prompted with them, or by the LMM on crops (zoom)."
    )
    refiner_model: str | None = _option(
        None, "Folder or hub id of the SAM model. None: the largest released model of its kind."
    )

    # Serving
    mask_previews: list[int] = _option(
        [], "Numbers of mask tokens after which `swift deploy` streams a preview, each >= 1. A request can override it."
    )
    max_image_pixels: int = _option(2**25, "Maximum number of pixels of an image in a request to `swift deploy`, >= 1.")
    max_request_images: int = _option(16, "Maximum number of images, videos and audios of a request together, >= 0.")
    max_request_pixels: int = _option(2**26, "Maximum number of pixels of a request's images together, >= 1.")
    max_request_bytes: int = _option(
        2**26, "Maximum size of a request's body, and of all that the server downloads for it, in bytes, >= 1."
    )
    max_request_masks: int = _option(16, "Maximum number of masks in a request to `swift deploy`, >= 0.")
    max_choices: int = _option(8, "Maximum number of answers to a request (`n`), >= 1.")
    max_beams: int = _option(8, "Maximum number of beams of a request (`num_beams`), >= 1.")
    max_answer_tokens: int = _option(
        8192, "Maximum number of tokens of an answer (`max_tokens`), >= 1. Also the default without --max_new_tokens."
    )
    max_active_requests: int = _option(
        256, "Number of requests that are answered or wait at a time, >= 1. Further ones get status 503."
    )
    max_outline_sides: int = _option(
        2**16,
        "Pixel sides of a mask's outline, plus a 128th of its box's pixels, above which a segment has no polygon, "
        ">= 0. 0: no polygons.",
    )
    answer_threads: int = _option(2, "Threads that read images and draw masks for clients of `swift deploy`, >= 1.")
    allow_private_urls: bool = _option(
        False, "Whether requests to `swift deploy` can have URLs of private, loopback and other internal addresses."
    )
    shutdown_seconds: int = _option(
        30, "Seconds within which `swift deploy` answers the requests in progress after SIGTERM, >= 0."
    )

    # Reinforcement learning
    reward_prefix_weight: float = _option(
        0.25, "Share of the reward mask_iou for the masks decoded from the first 1, 2, 4, ... mask tokens, from 0 to 1."
    )

    # Stage 1
    commitment_weight: float = _option(
        0.25, "Weight of the commitment loss, which pulls latents to their code vectors, >= 0."
    )
    codebook_weight: float = _option(
        1.0, "Weight of the codebook loss, which pulls code vectors to their latents, >= 0."
    )
    entropy_weight: float = _option(0.0, "Weight of the entropy term that favours even use of all codes, >= 0.")
    prefix_loss_weight: float = _option(1.0, "Weight of the reconstruction loss from random code prefixes, >= 0.")
    continuous_warmup_steps: int = _option(
        0, "Steps without quantization before k-means initializes the codebook, >= 0."
    )
    dead_code_steps: int = _option(100, "Optimizer steps after which an unused code is re-initialized, >= 0. 0: never.")

    def __post_init__(self) -> None:
        for name in ("data_root", "data_tasks"):  # YAML files and notebooks may hold a single text
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else value)
        if self.mask_decoding is None:
            self.mask_decoding = DEFAULT_DECODING
        check_arguments(self)
        _set_swift_defaults(self)
        set_current_arguments(self)

    @property
    def trains_on_masks(self) -> bool:
        """Whether a mask loss is part of the training loss (stage 2)."""
        return self.mask_loss_weight > 0 or self.hierarchical_loss_weight > 0

    @property
    def detokenizer_is_trained(self) -> bool:
        """Whether the de-tokenizer is trained together with the LMM."""
        return self.trains_on_masks if self.train_detokenizer is None else self.train_detokenizer

    @property
    def adapter_folders(self) -> list[str]:
        """Folders loaded on top of the model: adapters, and the checkpoint from which a run resumes."""
        resumed = getattr(self, "resume_from_checkpoint", None)
        return [*(getattr(self, "adapters", None) or []), *([resumed] if resumed else [])]

    def copy_options(self) -> "HimTokArguments":
        """Return a copy with the plugin's options only: small, and picklable without importing ms-swift."""
        own = object.__new__(HimTokArguments)
        own.__dict__.update({f.name: getattr(self, f.name) for f in fields(HimTokArguments)})
        return own


def _set_swift_defaults(args: Any) -> None:
    """Set fields of ms-swift whose own default does not work with masks."""
    if args.refiner == "zoom" and getattr(args, "infer_backend", None) is not None:
        args.stream = False  # with None, an interactive dialogue would stream
    # ms-swift's default metric scores text and needs a library that is not among ms-swift's requirements.
    if getattr(args, "predict_with_generate", False) and getattr(args, "eval_metric", None) is None:
        args.eval_metric = "mask"
        if args.metric_for_best_model is None:
            args.metric_for_best_model = "cIoU"
