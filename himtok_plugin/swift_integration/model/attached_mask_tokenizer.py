"""The mask tokenizer of a loaded LMM: a submodule of the LMM if a mask loss decodes with it, otherwise beside it.

Contract: wrappers for several processes (DeepSpeed, FSDP, DDP), optimizers and tuners treat what is a submodule as they
treat the LMM. What no loss decodes with stays outside: it is never sharded, cast or trained, and every process can
encode and decode on its own, without waiting for the others.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from himtok_plugin.mask_tokenizer import MaskTokenizer

MASK_TOKENIZER_ATTRIBUTE = "mask_tokenizer"


def attach_mask_tokenizer(model: PreTrainedModel, mask_tokenizer: MaskTokenizer, as_submodule: bool) -> None:
    """Set the model's attribute `mask_tokenizer`, frozen.

    Args:
        as_submodule: whether it becomes a submodule, which the LMM's weight files leave out.
    """
    mask_tokenizer.requires_grad_(False)
    if not as_submodule:
        vars(model)[MASK_TOKENIZER_ATTRIBUTE] = mask_tokenizer  # nn.Module.__setattr__ would register a submodule
        return
    device = next(model.parameters()).device
    model.add_module(MASK_TOKENIZER_ATTRIBUTE, mask_tokenizer.to(device))
    names = {f"{MASK_TOKENIZER_ATTRIBUTE}.{name}" for name in mask_tokenizer.state_dict()}
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}


def find_attached_mask_tokenizer(model: nn.Module) -> MaskTokenizer | None:
    """Return the mask tokenizer of a model, wrapped or not; None if it has none."""
    for module in model.modules():
        for attributes in (vars(module), module._modules):
            found = attributes.get(MASK_TOKENIZER_ATTRIBUTE)
            if isinstance(found, MaskTokenizer):
                return found
    return None


def get_attached_mask_tokenizer(model: nn.Module) -> MaskTokenizer:
    """Return the mask tokenizer of a model, wrapped or not.

    Raises:
        RuntimeError: the model has none.
    """
    mask_tokenizer = find_attached_mask_tokenizer(model)
    if mask_tokenizer is None:
        raise RuntimeError("the model has no mask tokenizer, expected a model that was loaded with --plugin himtok")
    return mask_tokenizer
