"""Extension of a loaded base model by mask tokens and a mask tokenizer.

Contract: `extend_loaded_model` runs at the end of ms-swift's model loading. It finds the mask tokenizer, adds missing
mask tokens to the text tokenizer and the token embeddings, stores a `MaskRuntime` at the text tokenizer, and attaches
the mask tokenizer to the model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swift.utils import HfConfigFactory, get_logger
from torch import nn
from transformers import InternVLProcessor, PreTrainedModel

from himtok_plugin.lmm.vocabulary import (
    MaskVocabulary,
    check_ids_are_text,
    extend_embeddings,
    extend_tokenizer,
    unsharded_shape,
)
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.prediction.refinement import SAM_KINDS
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments
from himtok_plugin.swift_integration.options.deepspeed_checkpoints import has_deepspeed_shards_only

from .adapters import check_adapter, has_mask_token_embeddings
from .checkpoint_sidecar import load_known_words, load_mask_tokenizer, resolve_mask_tokenizer
from .detokenizer import load_detokenizer
from .mask_runtime import MaskRuntime

logger = get_logger()
MAX_TILES = "MAX_NUM"  # ms-swift's environment variable


def extend_loaded_model(loader: Any, model: PreTrainedModel | None, processor: Any, config: Any) -> None:
    """Extend a model that ms-swift has loaded; text-only models and mask tokenizers stay unchanged.

    Args:
        loader: ms-swift's model loader.
        model: the LMM; None if ms-swift loads its processor only.
        processor: its processor or text tokenizer.
        config: its configuration.

    Raises:
        ValueError: there is no mask tokenizer; it is untrained or does not fit the text tokenizer's mask tokens; or the
            mask tokens have no trained embeddings.
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
    tokenizer_config, mask_tokenizer = _load_model_or_config(source, model is not None, _is_training(settings))
    if not tokenizer_config.codebook_ready:
        raise ValueError(
            f"mask_tokenizer: {str(source)!r} has codebook_ready=false in its config.json: its codebook is not trained "
            "yet, expected a mask tokenizer that stage 1 has trained beyond --continuous_warmup_steps"
        )
    added = extend_tokenizer(tokenizer, tokenizer_config.codebook_size)
    vocabulary = MaskVocabulary.of(tokenizer, tokenizer_config.codebook_size)
    check_ids_are_text(config, vocabulary.ids())
    runtime = MaskRuntime(settings.copy_options(), source, tokenizer_config, vocabulary, uses_mask_trainer(settings))
    runtime.known_words = load_known_words(loader.model_info.model_dir, settings.adapter_folders)
    tokenizer.himtok = runtime
    if model is None or mask_tokenizer is None:
        return
    embeddings: Any = get_language_model(model, loader.model_meta).get_input_embeddings()
    width = unsharded_shape(embeddings.weight)[1]
    for folder in settings.adapter_folders:
        check_adapter(folder, vocabulary, width)
    runtime.embeddings_are_new = bool(added) and not any(
        has_mask_token_embeddings(folder, vocabulary, width) for folder in settings.adapter_folders
    )
    if runtime.embeddings_are_new:
        _refuse_untrained_embeddings(settings, loader.model_info.model_dir)
    if added:
        features = mask_tokenizer.quantize.code_features() if settings.mask_rows_init == "codebook" else None
        owner = get_language_model(model, loader.model_meta)
        size = extend_embeddings(owner, added, len(tokenizer), features, settings.mask_rows_scale)
        HfConfigFactory.set_config_attr(config, "vocab_size", size)
        logger.info(f"Added {len(added)} mask tokens to the vocabulary.")
    has_mask_loss = _is_training(settings) and uses_mask_trainer(settings) and settings.trains_on_masks
    runtime.attach(model, mask_tokenizer, as_submodule=has_mask_loss)
    if settings.refiner in SAM_KINDS:
        runtime.refiner()  # an unreadable SAM model must fail now, not after the first answer


def limit_tiles(processor: Any) -> None:
    """Limit the tiles of an image in transformers' InternVL processor to MAX_NUM, if that variable is set.

    ms-swift applies the variable to the authors' InternVL layout only, and has no flag for the processor of
    transformers' layout. The limit is saved with the processor.

    Raises:
        ValueError: MAX_NUM is not a positive integer.
    """
    given = os.environ.get(MAX_TILES)
    if given is None or not isinstance(processor, InternVLProcessor):
        return
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{MAX_TILES}: got {given!r}, expected an integer >= 1")
    images = processor.image_processor
    images.max_patches = int(given)
    images.min_patches = min(images.min_patches, images.max_patches)


def uses_mask_trainer(args: Any) -> bool:
    """Whether `MaskTrainer` trains with these arguments: in `swift sft` and `swift pt`, not in `swift rlhf`."""
    return not hasattr(args, "rlhf_type") and getattr(args, "task_type", None) in (None, "causal_lm")


def _is_training(args: Any) -> bool:
    """Whether the command trains an LMM: `swift sft`, `swift pt` and `swift rlhf`."""
    from swift.arguments import SftArguments

    return isinstance(args, SftArguments)


def _refuse_untrained_embeddings(args: Any, model_dir: str) -> None:
    """Refuse newly initialized mask token embeddings in a command that does not train them from the start.

    Raises:
        ValueError: the command is not a training, or it resumes a run whose checkpoint has no such embeddings.
    """
    from swift.arguments import SftArguments

    folders = [repr(folder) for folder in (model_dir, *args.adapter_folders)]
    missing = f"{' and '.join(folders)} {'have' if len(folders) > 1 else 'has'} no mask token embeddings"
    if not isinstance(args, SftArguments):
        raise ValueError(
            f"model: {missing}, so generated masks would be random: expected a checkpoint that was trained with "
            "--plugin himtok"
        )
    if args.resume_from_checkpoint and not has_deepspeed_shards_only(args.resume_from_checkpoint):
        raise ValueError(
            f"resume_from_checkpoint: {missing}, and a resumed run cannot add them: expected a checkpoint of a run "
            "with --plugin himtok, or --adapters instead"
        )


def _load_model_or_config(
    source: Path, with_weights: bool, to_train: bool
) -> tuple[MaskTokenizerConfig, MaskTokenizer | None]:
    """Load a mask tokenizer, or only its configuration if that can be read without the weights.

    Args:
        source: folder or weights file.
        with_weights: whether the model is needed.
        to_train: whether the command is a training, which may shard the model and needs the encoder on demand only.
    """
    if not with_weights and source.is_dir():  # the sizes in a released weights file are those of its tensors
        return MaskTokenizerConfig.from_pretrained(source), None
    model = load_detokenizer(source) if with_weights and to_train else load_mask_tokenizer(source)
    return model.config, model


def get_language_model(model: nn.Module, model_meta: Any) -> PreTrainedModel:
    """Return the part of an LMM that has the token embeddings: the LMM itself or, by `model_meta`, a submodule."""
    from swift.model.patcher import get_lm_head_model

    return get_lm_head_model(model, model_meta)
