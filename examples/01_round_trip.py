"""A real mask to text and back: no LMM, no ms-swift.

    python examples/01_round_trip.py [MASK.png] [--mask_tokenizer DIR]

Without arguments: the horse that ships with scikit-image, and the tokenizer that ships with himtok_plugin. Writes
round_trip.png: the mask, and what 1, 2, 4, 8 … tokens say of it.
"""

import argparse

import torch
from skimage import data

from himtok_plugin import MaskTokenizer, codes_to_text, load_mask, text_to_codes
from himtok_plugin.masks.drawing import mask_strip
from himtok_plugin.masks.sources import from_square, to_square
from himtok_plugin.metrics.reconstruction import TOKEN_COUNTS
from himtok_plugin.metrics.segmentation import mask_iou

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("mask", nargs="?")
parser.add_argument("--mask_tokenizer", default="default")
arguments = parser.parse_args()

mask = load_mask(arguments.mask) if arguments.mask else ~data.horse()  # the horse is drawn black on white
tokenizer = MaskTokenizer.from_pretrained(arguments.mask_tokenizer)
square = torch.from_numpy(to_square(mask, tokenizer.config.image_size))
text = codes_to_text(tokenizer.encode(square[None])[0].tolist())
print(text)

codes = torch.tensor([text_to_codes(text)[0].codes])
panels, labels = [mask], ["mask"]
for n in [n for n in TOKEN_COUNTS if n <= codes.shape[1]]:
    with torch.inference_mode():
        restored = from_square(tokenizer.decode(codes[:, :n])[0].numpy(), mask.shape)
    panels.append(restored)
    labels.append(f"{n}: IoU {mask_iou(restored, mask):.2f}")
    print(f"{n:2d} tokens: IoU {mask_iou(restored, mask):.3f}")
mask_strip(panels, labels).save("round_trip.png")
