"""The mask tokenizer: encodes a mask as a few discrete codes, coarse to fine, and decodes codes to a mask.

`configuration` holds the model's fields and `sizes` named sets of them; `transformer` is the block that `encoder` and
`decoder` share; `quantizer` holds the codebook; `pixel_decoder` is the second half of the de-tokenizer; `modeling`
combines them to a transformers model; `code_search` finds better codes than the nearest; `objective` is the training
objective of stage 1; `released_weights` reads the authors' weights; `box` is a second code scheme, that of the default
mask tokenizer. Public names are imported on first use, so that the command line can list sizes without torch.

Does not know language models, text or ms-swift.
"""

from importlib import import_module
from typing import Any

# public name -> module that it is imported from
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
