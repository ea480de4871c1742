"""Tiny random parts and photographs in place of those that examples/09_real_base is made for."""

import numpy as np
from paths import EXAMPLES
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = EXAMPLES / "09_real_base"
ARCHITECTURE, IMAGE_SIDE, IMAGE_TOKENS = "test_efficientnet", 160, 25
CATEGORIES = [{"id": 1, "name": "dog"}, {"id": 5, "name": "orange"}]


def tiny_tokenizer():
    vocabulary = {text: i for i, text in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def square_photograph(photographs, id, box, category=1, color=(255, 0, 0)):
    """A grey photograph with one object, a rectangle in a colour, so that the image shows where the mask must be."""
    pixels = np.full((60, 80, 3), 128, np.uint8)
    mask = np.zeros((60, 80), bool)
    top, bottom, left, right = box
    mask[top:bottom, left:right] = True
    pixels[mask] = color
    return photographs.Photograph(id, Image.fromarray(pixels), (photographs.Region(mask, category, 0),))


def coco_folder(photographs, folder):
    boxes = [(0, 18, 0, 26), (20, 60, 30, 80), (0, 40, 20, 60)]
    made = [square_photograph(photographs, i, box, CATEGORIES[i % 2]["id"]) for i, box in enumerate(boxes)]
    photographs.write_photographs(folder, made, CATEGORIES)
    return photographs.CocoFolder(folder)


def load_weights(folder):
    return load_file(folder / "model.safetensors")
