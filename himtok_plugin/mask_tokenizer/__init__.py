"""The mask tokenizer: a mask becomes a few discrete codes, coarse to fine, and codes become a mask again.

Knows nothing of language models, of text and of ms-swift. One file per part: `configuration` sizes and switches,
`sizes` the named ones, `transformer` the shared block, `encoder`, `quantizer`, `decoder` and `pixel_decoder` the four
parts, `modeling` the model put together, `code_search` better codes than nearest, `reconstruction_loss` the loss
terms, `objective` stage 1's training objective, `conversion` released weights. Names are imported when they are asked
for, so that the command line can list sizes without torch.
"""

from importlib import import_module
from typing import Any

# public name -> submodule that defines it
_PUBLIC = {
    "SIZES": "sizes",
    "MaskTokenizer": "modeling",
    "MaskTokenizerConfig": "configuration",
    "build_mask_tokenizer": "sizes",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
