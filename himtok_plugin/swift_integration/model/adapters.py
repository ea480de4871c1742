"""Adapters: beside LoRA's own weights, just the mask tokens' rows of the embeddings are trained and saved.

Contract: `train_mask_token_embeddings` wraps a PEFT model's embeddings with PEFT's trainable tokens, input and output
side, tied or not; `check_adapter` refuses an adapter whose rows are not this model's, and `has_mask_token_embeddings`
tells one that has none; `get_adapter_size` is what a checkpoint weighs. PEFT does the rest: the rows are in the
adapter's file, and merging writes them into the base. Does not know trainers.
"""

from __future__ import annotations

import json
import math
import os
from copy import copy
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.other import TrainableTokensWrapper, set_additional_trainable_modules
from safetensors import safe_open
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from himtok_plugin.lmm.vocabulary import MaskVocabulary

ADAPTER = "default"  # PEFT's name for the adapter in training, which ms-swift saves
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
TRAINED_EMBEDDINGS_KEY = "token_adapter.trainable_tokens_delta"


def train_mask_token_embeddings(
    model: nn.Module, owner: nn.Module, vocabulary: MaskVocabulary, embeddings_are_new: bool
) -> None:
    """Make the mask tokens' rows trainable beside an adapter that was just made, or loaded without them.

    Nothing is done where the embeddings are trained as a whole, or by a tuner that cannot train rows that are not new.

    Args:
        model: what ms-swift made of the base model and the tuner.
        owner: the part of the base model that has `get_input_embeddings` and `get_output_embeddings`.
        vocabulary: where the mask tokens stand.
        embeddings_are_new: the rows were drawn at load, so an adapter without them would be of no use.

    Raises:
        ValueError: the rows are new and this tuner cannot train them, or PEFT cannot with ZeRO-3 on this device.
    """
    layers = get_embeddings(owner)
    if embeddings_are_new and any(isinstance(layer, BaseTunerLayer) for layer in layers):
        raise ValueError(
            "target_modules: got embeddings, whose new rows for mask tokens no checkpoint would hold, expected none of "
            "them, or --modules_to_save all-embedding, or a base model that knows mask tokens already"
        )
    if any(isinstance(layer, (AuxiliaryTrainingWrapper, BaseTunerLayer)) for layer in layers):
        return
    config = model.peft_config[ADAPTER] if isinstance(model, PeftModel) else None
    if config is None or not hasattr(config, "trainable_token_indices"):
        if not embeddings_are_new:
            return
        kind = type(model).__name__ if config is None else config.peft_type.value
        raise ValueError(
            f"tuner {kind}: cannot train the mask tokens' new embedding rows, expected a kind of LoRA with PEFT, full "
            "training, or a base model that knows mask tokens already"
        )
    if is_deepspeed_zero3_enabled() and not torch.cuda.is_available():
        raise ValueError(
            "deepspeed=zero3 with LoRA: PEFT gathers embedding rows on CUDA devices only, expected ZeRO-2 without one"
        )
    base = model.get_base_model()
    names = {module: name for name, module in base.named_modules()}
    own = {id(layer.weight): layer for layer in reversed(layers)}.values()  # of tied ones the input side
    config.trainable_token_indices = {names[layer]: vocabulary.ids() for layer in own}
    rows_alone = copy(config)
    rows_alone.modules_to_save = rows_alone.modules_to_tie = None  # a loaded adapter's would begin anew
    set_additional_trainable_modules(model, rows_alone, BaseTuner.get_model_config(base), ADAPTER)
    found = get_embeddings(owner)
    if not all(isinstance(layer, TrainableTokensWrapper) for layer in found):
        # PEFT goes by the configuration, which can say otherwise than the weights.
        raise RuntimeError(f"PEFT left an embedding of {type(base).__name__} as it was: are its weights tied or not?")
    for layer in found:
        rows = layer.token_adapter.trainable_tokens_delta[ADAPTER]
        rows.data = rows.data.float()  # like LoRA's own weights: small steps would be lost in half precision


def refuse_sharded_embeddings(model: nn.Module) -> None:
    """Refuse trained rows in a run with FSDP, old rows and new ones alike.

    Raises:
        ValueError: PEFT puts rows into a matrix of which FSDP leaves each process a part.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if any(isinstance(module, TrainableTokensWrapper) for module in model.modules()):
        raise ValueError(
            "fsdp with LoRA: PEFT cannot train rows of a matrix that is sharded, expected DDP, ZeRO-2 or full training"
        )


def has_frozen_embeddings(owner: nn.Module) -> bool:
    """Whether input or output embeddings are trained neither as a whole nor in some rows."""
    return any(not any(p.requires_grad for p in layer.parameters()) for layer in get_embeddings(owner))


def exclude_embeddings_on_save(model: nn.Module) -> None:
    """PEFT adds whole embedding matrices to an adapter's file when the vocabulary has grown; the rows are in it."""
    if isinstance(model, PeftModel):
        model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)


def get_embeddings(owner: nn.Module) -> list[nn.Module]:
    """Input and, where there are any, output embeddings, perhaps with the same weight."""
    layers = (owner.get_input_embeddings(), owner.get_output_embeddings())
    return [layer for layer in layers if layer is not None]


def check_adapter(folder: str | Path, vocabulary: MaskVocabulary, hidden: int) -> None:
    """Refuse an adapter that was trained on other rows or another width than the model's.

    Args:
        folder: the adapter's checkpoint; one without rows of mask tokens passes.
        vocabulary: the model's mask tokens.
        hidden: width of the model's embeddings.

    Raises:
        ValueError: the adapter belongs to another base model or another mask tokenizer.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        return
    rows = json.loads(path.read_text(encoding="utf-8")).get("trainable_token_indices") or {}
    for layer, ids in rows.items() if isinstance(rows, dict) else [("the embeddings", rows)]:
        expected = vocabulary.ids()
        if ids != expected:
            raise ValueError(
                f"adapter {str(folder)!r}: trained {_span(ids)} of {layer}, but the base model's mask tokens are "
                f"{_span(expected)}: it belongs to another base model or mask tokenizer"
            )
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        return
    with safe_open(weights, "pt") as file:
        for name in file.keys():
            if TRAINED_EMBEDDINGS_KEY in name and (width := file.get_slice(name).get_shape()[-1]) != hidden:
                raise ValueError(
                    f"adapter {str(folder)!r}: its rows are {width} wide, the base model's embeddings {hidden}: "
                    "it belongs to another base model"
                )


def has_mask_token_embeddings(folder: str | Path, vocabulary: MaskVocabulary, hidden: int) -> bool:
    """Whether a checkpoint of an adapter holds rows of the mask tokens: by themselves, or in whole matrices.

    Args:
        folder, vocabulary, hidden: see `check_adapter`.
    """
    config, weights = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("trainable_token_indices"):
        return True
    if not weights.is_file():
        return False
    with safe_open(weights, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    return any(len(shape) == 2 and shape[0] > max(vocabulary.ids()) and shape[1] == hidden for shape in shapes)


def _span(ids: list[int]) -> str:
    return f"{len(ids)} rows {min(ids)} to {max(ids)}" if ids else "no rows"


def get_adapter_size(folder: str | Path) -> tuple[int, int] | None:
    """(parameters, bytes) in an adapter's checkpoint, None where there is none."""
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    return count, path.stat().st_size
