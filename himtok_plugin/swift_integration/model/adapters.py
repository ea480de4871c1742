"""Adapters: the mask tokens' embeddings are trained and saved together with LoRA's weights.

Contract: `train_mask_token_embeddings` wraps the input and output embeddings of a PEFT model with PEFT's trainable
tokens, tied or not. PEFT then saves these embeddings in the adapter's file, and merging writes them to the base model.
`check_adapter` refuses an adapter of another base model or mask tokenizer.
"""

from __future__ import annotations

import math
import os
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.other import TrainableTokensWrapper, set_additional_trainable_modules
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from himtok_plugin.checkpoints.adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, AdapterFiles
from himtok_plugin.checkpoints.safetensors_files import read_safetensors_header
from himtok_plugin.lmm.vocabulary import MaskVocabulary

ADAPTER = "default"  # PEFT's name for the adapter in training, which ms-swift saves


def train_mask_token_embeddings(
    model: nn.Module, owner: PreTrainedModel, vocabulary: MaskVocabulary, embeddings_are_new: bool
) -> None:
    """Make the mask tokens' embeddings trainable in a model with a new adapter, or with one that has none of them.

    Nothing changes if the run trains all embeddings, or if the tuner cannot train single embeddings and they are not
    new.

    Args:
        model: the base model with ms-swift's tuner.
        owner: the part of the base model that has the token embeddings.
        vocabulary: the ids of the mask tokens.
        embeddings_are_new: the embeddings were initialized at load, so an adapter without them would be useless.

    Raises:
        ValueError: the embeddings are new and this tuner cannot train them, or PEFT cannot with ZeRO-3 on this device.
        RuntimeError: PEFT has left an embedding layer out.
    """
    layers = get_embeddings(owner)
    if embeddings_are_new and any(isinstance(layer, BaseTunerLayer) for layer in layers):
        raise ValueError(
            "target_modules: got embeddings, but the adapter would not save the new mask token embeddings, expected no "
            "embeddings, --modules_to_save all-embedding, or a base model that has mask tokens already"
        )
    if any(isinstance(layer, (AuxiliaryTrainingWrapper, BaseTunerLayer)) for layer in layers):
        return
    config: Any = model.peft_config[ADAPTER] if isinstance(model, PeftModel) else None
    if not isinstance(model, PeftModel) or not hasattr(config, "trainable_token_indices"):
        if not embeddings_are_new:
            return
        kind = type(model).__name__ if config is None else config.peft_type.value
        raise ValueError(
            f"tuner {kind}: cannot train the new mask token embeddings, expected a kind of LoRA with PEFT, full "
            "training, or a base model that has mask tokens already"
        )
    if is_deepspeed_zero3_enabled() and not torch.cuda.is_available():
        raise ValueError(
            "deepspeed=zero3 with LoRA: PEFT gathers token embeddings on CUDA devices only, expected ZeRO-2 on a CPU"
        )
    base = model.get_base_model()
    names = {module: name for name, module in base.named_modules()}
    untied = {id(layer.weight): layer for layer in reversed(layers)}.values()  # of tied layers the input embeddings
    config.trainable_token_indices = {names[layer]: vocabulary.ids() for layer in untied}
    tokens_only = copy(config)
    tokens_only.modules_to_save = tokens_only.modules_to_tie = None  # else PEFT would reset those of a loaded adapter
    set_additional_trainable_modules(model, tokens_only, BaseTuner.get_model_config(base), ADAPTER)
    for layer in get_embeddings(owner):
        if not isinstance(layer, TrainableTokensWrapper):
            # PEFT reads from the configuration whether weights are tied, and the configuration can be wrong.
            raise RuntimeError(
                f"PEFT does not train all embeddings of {type(base).__name__}: check tie_word_embeddings in its config"
            )
        deltas: Any = layer.token_adapter.trainable_tokens_delta
        embeddings = deltas[ADAPTER]
        embeddings.data = embeddings.data.float()  # as LoRA's own weights: half precision would lose small steps


def refuse_sharded_embeddings(model: nn.Module) -> None:
    """Refuse PEFT's trainable tokens in a run with FSDP.

    Raises:
        ValueError: FSDP shards the embedding matrix, and PEFT needs it complete.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if any(isinstance(module, TrainableTokensWrapper) for module in model.modules()):
        raise ValueError(
            "fsdp with LoRA: PEFT cannot train single embeddings of a sharded matrix, expected DDP, ZeRO-2 or full "
            "training"
        )


def has_frozen_embeddings(owner: PreTrainedModel) -> bool:
    """Whether input or output embeddings have no trainable parameter."""
    return any(not any(p.requires_grad for p in layer.parameters()) for layer in get_embeddings(owner))


def exclude_embeddings_on_save(model: nn.Module) -> None:
    """Stop PEFT from saving complete embedding matrices, which it does when the vocabulary has grown.

    The adapter's file holds the mask tokens' embeddings anyway.
    """
    if isinstance(model, PeftModel):
        vars(model)["save_pretrained"] = partial(model.save_pretrained, save_embedding_layers=False)


def get_embeddings(owner: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of the input embeddings and, if there are any, the output embeddings. They can be tied."""
    layers = (owner.get_input_embeddings(), owner.get_output_embeddings())
    return [layer for layer in layers if layer is not None]


def check_adapter(folder: str | Path, vocabulary: MaskVocabulary, hidden: int) -> None:
    """Refuse an adapter whose mask token embeddings have other ids or another width than the model's.

    Args:
        folder: the adapter's checkpoint; one without mask token embeddings passes.
        vocabulary: ids of the model's mask tokens.
        hidden: width of the model's token embeddings.

    Raises:
        ValueError: the adapter belongs to another base model or another mask tokenizer, or a file is truncated.
    """
    if not (Path(folder) / ADAPTER_CONFIG_FILE).is_file():
        return
    adapter = AdapterFiles.open(folder)
    trained = adapter.config.get("trainable_token_indices") or {}
    for layer, ids in trained.items() if isinstance(trained, dict) else [("the embeddings", trained)]:
        expected = vocabulary.ids()
        if ids != expected:
            raise ValueError(
                f"adapter {str(folder)!r}: got {_format_ids(ids)} of {layer}, expected {_format_ids(expected)}, the "
                "base model's mask tokens: it belongs to another base model or mask tokenizer"
            )
    for key in adapter.list_trained_embeddings().values():
        if (width := adapter.tensors[key].shape[-1]) != hidden:
            raise ValueError(
                f"adapter {str(folder)!r}: its token embeddings have width {width}, expected {hidden}, the base "
                "model's: it belongs to another base model"
            )


def has_mask_token_embeddings(folder: str | Path, vocabulary: MaskVocabulary, hidden: int) -> bool:
    """Whether an adapter's checkpoint has mask token embeddings: single ones, or complete matrices.

    Args:
        folder, vocabulary, hidden: see `check_adapter`.
    """
    if not (Path(folder) / ADAPTER_CONFIG_FILE).is_file():
        return False
    adapter = AdapterFiles.open(folder)
    shapes = [header.shape for header in adapter.tensors.values()]
    return adapter.has_trained_embeddings() or any(
        len(shape) == 2 and shape[0] > max(vocabulary.ids()) and shape[1] == hidden for shape in shapes
    )


def _format_ids(ids: list[int]) -> str:
    return f"{len(ids)} token embeddings {min(ids)} to {max(ids)}" if ids else "no token embeddings"


def get_adapter_size(folder: str | Path) -> tuple[int, int] | None:
    """Return the number of parameters and of bytes in an adapter's checkpoint; None if it has no adapter."""
    path = Path(folder) / ADAPTER_WEIGHTS_FILE
    if not path.is_file():
        return None
    count = sum(math.prod(header.shape) for header in read_safetensors_header(path).values())
    return count, path.stat().st_size
