"""The mask tokenizer as a submodule of the LMM, where optimizers and DeepSpeed find its parameters."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from himtok_plugin.mask_tokenizer import MaskTokenizer

MASK_TOKENIZER_ATTRIBUTE = "mask_tokenizer"


def attach_mask_tokenizer(model: PreTrainedModel, mask_tokenizer: MaskTokenizer) -> None:
    """Add the mask tokenizer, frozen, to the model as a submodule that the LMM's weight files leave out."""
    device = next(model.parameters()).device
    mask_tokenizer.requires_grad_(False)
    model.add_module(MASK_TOKENIZER_ATTRIBUTE, mask_tokenizer.to(device))
    names = {f"{MASK_TOKENIZER_ATTRIBUTE}.{name}" for name in mask_tokenizer.state_dict()}
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}


def find_attached_mask_tokenizer(model: nn.Module) -> MaskTokenizer | None:
    """Return the mask tokenizer in a model, wrapped or not; None if it has none."""
    for name, module in model.named_modules():
        if isinstance(module, MaskTokenizer) and name.rpartition(".")[2] == MASK_TOKENIZER_ATTRIBUTE:
            return module
    return None


def get_attached_mask_tokenizer(model: nn.Module) -> MaskTokenizer:
    """Return the mask tokenizer in a model, wrapped or not.

    Raises:
        RuntimeError: the model has none.
    """
    mask_tokenizer = find_attached_mask_tokenizer(model)
    if mask_tokenizer is None:
        raise RuntimeError("the model has no mask tokenizer, expected a model that was loaded with --plugin himtok")
    return mask_tokenizer
