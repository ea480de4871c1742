"""The mask tokenizer as a submodule of the LMM."""

from __future__ import annotations

from torch import nn

from himtok_plugin.mask_tokenizer import MaskTokenizer

MASK_TOKENIZER_ATTRIBUTE = "mask_tokenizer"


def attach(model: nn.Module, mask_tokenizer: MaskTokenizer) -> None:
    """Make the mask tokenizer a submodule: optimizers and sharding must know it, the LMM's files must not."""
    device = next(model.parameters()).device
    mask_tokenizer.requires_grad_(False)
    model.add_module(MASK_TOKENIZER_ATTRIBUTE, mask_tokenizer.to(device))
    names = {f"{MASK_TOKENIZER_ATTRIBUTE}.{name}" for name in mask_tokenizer.state_dict()}
    model._keys_to_ignore_on_save = set(model._keys_to_ignore_on_save or ()) | names


def find_attached_mask_tokenizer(model: nn.Module) -> MaskTokenizer | None:
    """The mask tokenizer inside a model, however the model is wrapped; None for a model without one."""
    for name, module in model.named_modules():
        if isinstance(module, MaskTokenizer) and name.rpartition(".")[2] == MASK_TOKENIZER_ATTRIBUTE:
            return module
    return None


def get_attached_mask_tokenizer(model: nn.Module) -> MaskTokenizer:
    """`find_attached_mask_tokenizer`, where there has to be one."""
    mask_tokenizer = find_attached_mask_tokenizer(model)
    if mask_tokenizer is None:
        raise RuntimeError("the model has no mask tokenizer: was it loaded with --plugin himtok?")
    return mask_tokenizer
