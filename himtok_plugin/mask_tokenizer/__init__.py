"""The mask tokenizer: a mask becomes a few discrete codes, coarse to fine, and codes become a mask again.

Knows nothing of language models, of text and of ms-swift. One file per part:
`configuration` sizes and switches, `sizes` the named ones, `transformer` the shared block, `encoder`, `quantizer`,
`decoder` and `pixel_decoder` the four parts, `modeling` the model put together, `reconstruction_loss` the loss terms,
`objective` stage 1's training objective, `conversion` released weights.
"""

from .configuration import MaskTokenizerConfig
from .modeling import MaskTokenizer
from .sizes import SIZES, build_mask_tokenizer

__all__ = ["SIZES", "MaskTokenizer", "MaskTokenizerConfig", "build_mask_tokenizer"]
