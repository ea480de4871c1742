"""Encode a mask as mask tokens and decode it again, in Python, without an LMM or ms-swift.

    python examples/01_round_trip.py [MASK.png] [--mask_tokenizer DIR]

Shows how the mask tokenizer is called, and how the mask gets more precise with every token. Takes seconds.

Prints the mask as text and the IoU of the masks decoded from its first 1, 2, 4, 8 … tokens, and draws them in
round_trip.png. By default the mask is the horse of scikit-image, and the mask tokenizer is the one that ships with
himtok_plugin.
"""

import argparse

import torch
from skimage import data

from himtok_plugin import MaskTokenizer, codes_to_text, load_mask, text_to_codes
from himtok_plugin.masks import from_square, to_square
from himtok_plugin.masks.drawing import draw_mask_strip
from himtok_plugin.metrics.reconstruction import TOKEN_COUNTS
from himtok_plugin.metrics.segmentation import mask_iou

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("mask", nargs="?")
parser.add_argument("--mask_tokenizer", default="default")
arguments = parser.parse_args()

mask = load_mask(arguments.mask) if arguments.mask else ~data.horse()  # the horse is black on white
tokenizer = MaskTokenizer.from_pretrained(arguments.mask_tokenizer)
square = torch.from_numpy(to_square(mask, tokenizer.config.image_size))
text = codes_to_text(tokenizer.encode(square[None])[0].tolist())
print(text)

codes = torch.tensor([text_to_codes(text)[0].codes])
panels, labels = [mask], ["mask"]
for n in [n for n in TOKEN_COUNTS if n <= codes.shape[1]]:
    with torch.inference_mode():
        decoded = from_square(tokenizer.decode(codes[:, :n])[0].numpy(), mask.shape)
    panels.append(decoded)
    labels.append(f"{n}: IoU {mask_iou(decoded, mask):.2f}")
    print(f"{n:2d} tokens: IoU {mask_iou(decoded, mask):.3f}")
draw_mask_strip(panels, labels).save("round_trip.png")
