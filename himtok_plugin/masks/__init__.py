"""Masks as arrays: read from any source, as COCO RLE or polygons, to and from the model's square, drawn.

A mask is a bool array (h, w), True is foreground. Does not know models, codes or text; torch is not imported.
"""

from .bounding_box import mask_bbox
from .mask_sequence import Masks
from .sources import MaskSource, load_mask, to_rle
from .squares import Resize, from_square, to_square

__all__ = ["MaskSource", "Masks", "Resize", "from_square", "load_mask", "mask_bbox", "to_rle", "to_square"]
