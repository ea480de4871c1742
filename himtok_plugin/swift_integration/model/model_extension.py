"""Mask tokens and a mask tokenizer for a model that ms-swift has loaded."""

from __future__ import annotations

import os
from pathlib import Path

from swift.utils import HfConfigFactory, get_logger
from torch import Tensor, nn
from transformers import InternVLProcessor

from himtok_plugin.lmm.vocabulary import (
    MaskVocabulary,
    check_ids_are_text,
    extend_embeddings,
    extend_tokenizer,
    full_shape,
)
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.prediction.refinement import SAM_KINDS
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments

from .adapters import check_adapter, has_mask_token_embeddings
from .attached_mask_tokenizer import attach
from .checkpoint_sidecar import load_mask_tokenizer, resolve_mask_tokenizer
from .detokenizer import load_detokenizer
from .mask_runtime import MaskRuntime

logger = get_logger()
MAX_TILES = "MAX_NUM"  # ms-swift's environment variable


def extend_loaded_model(loader, model: nn.Module | None, processor, config) -> None:
    """Bring masks to a model that ms-swift has loaded.

    Args:
        loader: ms-swift's model loader.
        model: the LMM, None when only its processor was asked for.
        processor: its processor or text tokenizer.
        config: its configuration.

    Raises:
        ValueError: no mask tokenizer to be found, one that is not trained or does not fit the text tokenizer's mask
            tokens, or mask tokens of which nothing has trained the embeddings.
    """
    settings = get_current_arguments()
    if settings is None or loader.return_dummy_model or loader.model_meta.model_type == MaskTokenizerConfig.model_type:
        return
    if not loader.model_meta.is_multimodal:
        if settings.mask_tokenizer or settings.trains_on_masks:
            raise ValueError(
                f"model_type={loader.model_meta.model_type!r}: got a text-only model with mask options, expected a "
                "multimodal one"
            )
        return
    limit_tiles(processor)
    tokenizer = loader._get_tokenizer(processor)
    source = resolve_mask_tokenizer(settings.mask_tokenizer, loader.model_info.model_dir, settings.adapter_folders)
    tokenizer_config, mask_tokenizer = _load(source, model is not None, _trains_inside(settings))
    if not tokenizer_config.codebook_ready:
        raise ValueError(
            f"mask_tokenizer: {str(source)!r} has codebook_ready=false in its config.json: its codes mean nothing yet, "
            "expected a mask tokenizer that stage 1 has trained beyond --continuous_warmup_steps"
        )
    added = extend_tokenizer(tokenizer, tokenizer_config.codebook_size)
    vocabulary = MaskVocabulary.of(tokenizer, tokenizer_config.codebook_size)
    check_ids_are_text(config, vocabulary.ids())
    runtime = MaskRuntime(settings.copy_options(), source, tokenizer_config, vocabulary, uses_mask_trainer(settings))
    tokenizer.himtok = runtime
    if model is None:
        return
    width = full_shape(get_language_model(model, loader.model_meta).get_input_embeddings().weight)[1]
    for folder in settings.adapter_folders:
        check_adapter(folder, vocabulary, width)
    runtime.embeddings_are_new = bool(added) and not any(
        has_mask_token_embeddings(folder, vocabulary, width) for folder in settings.adapter_folders
    )
    if runtime.embeddings_are_new:
        _check_mask_tokens_can_learn(settings, loader.model_info.model_dir)
    if added:
        codebook = mask_tokenizer.quantize.codebook() if settings.mask_rows_init == "codebook" else None
        _extend_model(loader, model, config, added, len(tokenizer), codebook)
        logger.info(f"Added {len(added)} mask tokens to the vocabulary.")
    attach(model, mask_tokenizer)
    runtime.attach(mask_tokenizer)
    if settings.refiner in SAM_KINDS:
        runtime.refiner()  # weights that cannot be loaded are told now, not after the first answer


def limit_tiles(processor) -> None:
    """Make InternVL's processor of the HF layout cut images into MAX_NUM tiles at most, if that is set.

    ms-swift heeds it in the chat layout only; in this one the processor decides, and no flag reaches it. A checkpoint's
    processor is saved with it.

    Raises:
        ValueError: it is no number of tiles.
    """
    given = os.environ.get(MAX_TILES)
    if given is None or not isinstance(processor, InternVLProcessor):
        return
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{MAX_TILES}: got {given!r}, expected an integer >= 1")
    images = processor.image_processor
    images.max_patches = int(given)
    images.min_patches = min(images.min_patches, images.max_patches)


def uses_mask_trainer(args) -> bool:
    """Whether these arguments lead to `MaskTrainer`: `swift sft` and `swift pt`, not reinforcement learning."""
    return not hasattr(args, "rlhf_type") and getattr(args, "task_type", None) in (None, "causal_lm")


def _trains_inside(args) -> bool:
    """Whether these arguments lead to a mask tokenizer that `MaskTrainer` trains inside its LMM."""
    from swift.arguments import SftArguments

    return isinstance(args, SftArguments) and uses_mask_trainer(args)


def _check_mask_tokens_can_learn(args, model_dir: str) -> None:
    """Refuse mask tokens that were drawn just now where nothing will train them.

    Raises:
        ValueError: this is no training, or one that goes on from an adapter without them.
    """
    from swift.arguments import SftArguments

    folders = [repr(folder) for folder in (model_dir, *args.adapter_folders)]
    nowhere = f"{' and '.join(folders)} {'have' if len(folders) > 1 else 'has'} no rows of mask tokens"
    if not isinstance(args, SftArguments):
        raise ValueError(
            f"model: {nowhere}, so that answers with masks would be drawn at random: expected a checkpoint that was "
            "trained with --plugin himtok"
        )
    if args.resume_from_checkpoint:
        raise ValueError(
            f"resume_from_checkpoint: {nowhere}, which cannot begin in the middle of a run: expected a checkpoint of a "
            "run with --plugin himtok, or --adapters instead"
        )


def _load(source: Path, with_weights: bool, to_train: bool) -> tuple[MaskTokenizerConfig, MaskTokenizer | None]:
    if not with_weights and source.is_dir():  # released weights know their sizes only from the tensors
        return MaskTokenizerConfig.from_pretrained(source), None
    model = load_detokenizer(source) if with_weights and to_train else load_mask_tokenizer(source)
    return model.config, model


def get_language_model(model: nn.Module, model_meta) -> nn.Module:
    """The part with the embeddings: where a family's LMM does not hold them itself, ms-swift knows which part does."""
    from swift.model.patcher import get_lm_head_model

    return get_lm_head_model(model, model_meta)


def _extend_model(
    loader, model: nn.Module, config, added: list[int], vocabulary_size: int, codebook: Tensor | None
) -> None:
    owner = get_language_model(model, loader.model_meta)
    HfConfigFactory.set_config_attr(config, "vocab_size", extend_embeddings(owner, added, vocabulary_size, codebook))
