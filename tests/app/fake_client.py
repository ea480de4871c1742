"""A client of no server: it answers with known masks, token by token, so that tests know what the page must draw."""

import threading
import time
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from himtok_plugin.client import AnswerUpdate, ClientError
from himtok_plugin.mask_text import MASK_END, MASK_START, mask_token
from himtok_plugin.masks import to_rle

TOKENS = 4
SIZE = 96, 128  # (h, w) of the image of most tests


def disc(size, x, y, radius):
    """A mask with a disc at fractions of the image's width and height; the radius is one of its longer side."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.hypot(columns - x * size[1], rows - y * size[0]) < radius * max(size)


@cache
def known_prefix(size, number, tokens):
    """The mask that the fake model has written after so many tokens: it shrinks from a large disc."""
    return disc(size, 0.3 + 0.4 * (number % 2), 0.5, 0.1 + 0.05 * (TOKENS - tokens))


def make_segment(mask, codes, score=0.9, label=None, complete=True):
    """A segment as servers send it."""
    rle = to_rle(mask)
    return {
        **rle,
        "polygon": None,
        "bbox": [0, 0, 1, 1],
        "score": score,
        "codes": codes,
        "label": label,
        "complete": complete,
    }


@dataclass
class FakeClient:
    """Answers "It is MASK." per mask asked for; the question says what else is to happen.

    Attributes:
        size: (h, w) of the images.
        asked: the arguments of all questions.
        gate: is waited for between the tokens of questions with the word "slow".
    """

    size: tuple = SIZE
    ready: bool = True
    asked: list = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    delay: float = 0.0

    def is_ready(self):
        return self.ready

    def model_name(self):
        return "fake-model"

    def ask(self, messages, images, masks=(), previews=(), **kwargs):
        self.asked.append(
            {"messages": messages, "images": images, "masks": list(masks), "previews": previews, **kwargs}
        )
        question = messages[-1]["content"]
        if "fail" in question:
            raise ClientError("request: got one that the model cannot answer (test), expected another")
        if "nothing" in question:
            yield self._update("There is no <b>such</b> thing in the image.", [], None, finished=True)
            return
        if "Describe" in question:
            yield self._update("It is a red circle.", [], None, finished=True)
            return
        text, segments = "They are ", []
        unknown = ["bus"] if "bus" in question else []
        for number in range(2 if "two" in question else 1):
            text += f"<ref>thing {number + 1}</ref>" + MASK_START
            codes = []
            for n in range(1, TOKENS + 1):
                if "slow" in question and n == 3:
                    self.gate.wait(20)
                time.sleep(self.delay)
                codes.append(100 * number + n)
                text += mask_token(codes[-1])
                preview = make_segment(known_prefix(self.size, number, n), list(codes)) if n < TOKENS else None
                yield self._update(text, segments, preview, unknown)
            text += MASK_END
            score = 0.3 if "uncertain" in question else 0.9
            label = f"thing {number + 1}"
            segments = [*segments, make_segment(known_prefix(self.size, number, TOKENS), codes, score, label)]
            yield self._update(text, segments, None, unknown)
        yield self._update(text + ".", segments, None, unknown, finished=True)

    def _update(self, text, segments, preview, unknown=(), finished=False):
        return AnswerUpdate(text, list(segments), preview, finished, unknown_words=list(unknown))
