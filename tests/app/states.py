"""Conversations in memory, for tests of what the page keeps, draws and writes."""

import io

import numpy as np
from fake_client import SIZE, TOKENS, known_prefix, make_segment
from PIL import Image

from himtok_plugin.app.session import Conversation
from himtok_plugin.app.settings import PageSettings
from himtok_plugin.app.uploads import read_upload

SETTINGS = PageSettings("http://127.0.0.1:1/v1")


def noise(size=SIZE, seed=0):
    """An image without structure."""
    return Image.fromarray(np.random.default_rng(seed).integers(60, 200, (*size, 3), dtype=np.uint8))


def image_file(folder, size=SIZE, name="a photo.png", image=None, **options):
    """Write an image; returns its path."""
    path = folder / name
    (image or noise(size)).save(path, **options)
    return path


def conversation_of(folder, size=SIZE, **options):
    """A conversation about an image, without turns."""
    return Conversation(read_upload(image_file(folder, size, **options), SETTINGS))


def answer(conversation, text="Segment it.", scores=(0.9,), labels=("thing",), regions=()):
    """Add a turn whose answer has a mask per score, each with all of its prefixes."""
    turn = conversation.start_turn(text, regions)
    size = conversation.image.size
    for number, (score, label) in enumerate(zip(scores, labels, strict=True)):
        codes = [100 * number + n for n in range(1, TOKENS + 1)]
        for n in range(1, TOKENS):
            turn.open_prefixes[n] = make_segment(known_prefix(size, number, n), codes[:n])
        conversation.add_mask(turn, make_segment(known_prefix(size, number, TOKENS), codes, score, label))
        turn.answer += "It is <|mt_start|>" + "".join(f"<|mt_{code}|>" for code in codes) + "<|mt_end|>. "
    turn.is_finished = True
    return turn


def read_png(content):
    """The pixels of a PNG file in memory."""
    return np.array(Image.open(io.BytesIO(content)))
