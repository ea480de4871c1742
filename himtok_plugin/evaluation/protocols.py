"""Evaluation protocols by name: which question is asked, which pixels count, when an answer counts as "no target".

Published numbers differ by rules that papers often leave out, so every score here is reported with its protocol.

Contract: a `Protocol` is plain data; `PROTOCOLS` holds all of them by name. `Protocol.overlap` applies one to the run
lengths of a sample's masks, `Protocol.pair` to their pixels; both count the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from himtok_plugin.data.joined_expressions import JOINED, JOINED_BEGINS, JOINED_ENDS, joined_question
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER
from himtok_plugin.masks import Resize, from_square
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.metrics.segmentation import Overlap

Ignore = Literal["excluded", "foreground"]
RESIZES: dict[str, str] = {
    "bilinear": "bilinear resize of the probabilities, then threshold",
    "nearest": "nearest neighbour of the probabilities, then threshold (the paper's code)",
}


@dataclass(frozen=True)
class Protocol:
    """The rules behind a score.

    Attributes:
        name: as in reports.
        summary: one sentence for reports.
        joined: True: a question joins all expressions of a referent, see `joined_question`. False: it holds a single
            expression. None: either.
        first: whether the question must hold the first expression of its referent.
        ignore: whether ignored pixels count nowhere (`excluded`) or as foreground of prediction and target.
        least_pixels: a prediction with fewer pixels counts as empty.
        precision_over_targets: whether P@x is computed over samples with a target only.
    """

    name: str
    summary: str
    joined: bool | None = None
    first: bool = False
    ignore: Ignore = "excluded"
    least_pixels: int = 0
    precision_over_targets: bool = False

    def overlap(
        self, predicted: Sequence[Runs], true: Sequence[Runs], ignore: Sequence[Runs], size: tuple[int, int]
    ) -> Overlap:
        """Count the pixels of one sample: the union of its predicted masks, that of its true masks, and both.

        Args:
            predicted, true, ignore: masks; without `ignore` every pixel counts.
            size: (h, w) of all masks.
        Raises:
            ValueError: a mask has another size.
        """
        a, b = Runs.union(predicted, size), Runs.union(true, size)
        if a.area < self.least_pixels:
            a = Runs.empty(size)
        if ignore:
            ignored = Runs.union(ignore, size)
            if self.ignore == "excluded":
                a, b = a.without(ignored), b.without(ignored)
            else:
                a, b = Runs.union([a, ignored], size), Runs.union([b, ignored], size)
        return Overlap(a.overlap(b), a.area, b.area)

    def pair(
        self, prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Apply the protocol to masks as pixels, bool (h, w) each: the arguments of `SegmentationMetrics.update`."""
        if np.count_nonzero(prediction) < self.least_pixels:
            prediction = np.zeros_like(prediction)
        if ignore is None or self.ignore == "excluded":
            return prediction, target, ignore
        return prediction | ignore, target | ignore, None

    def check_question(self, question: str, expressions: Sequence[str] | None = None) -> None:
        """Raise a ValueError if the protocol does not allow a question.

        Args:
            question: the question of a sample.
            expressions: all expressions of its referent, in order, if known.
        """
        asked = question.replace(IMAGE_PLACEHOLDER, "").strip()
        expected = None
        if self.joined:
            whole = joined_question(expressions) if expressions else None
            begins = f"{JOINED_BEGINS}{JOINED} 1. "
            if asked != whole if whole else not (asked.startswith(begins) and asked.endswith(JOINED_ENDS)):
                expected = repr(whole or f"{begins}… 2. … {JOINED_ENDS}")
        elif self.joined is False and JOINED in asked:
            expected = f"one expression, without {JOINED!r}"
        elif self.first and expressions and expressions[0] not in asked:
            expected = f"the first of its expressions, {expressions[0]!r:.80}"
        if expected:
            raise ValueError(f"question: got {question!r:.120}, expected {expected} under the protocol {self.name!r}")


def resize_square(square: np.ndarray, size: tuple[int, int], threshold: float, resize: Resize) -> np.ndarray:
    """Resize mask probabilities to the image by one of `RESIZES`, and threshold them.

    Args:
        square: float32 (s, s) probabilities.
        size: (h, w) of the image.
        threshold: probability from which a pixel is foreground; with `nearest`, above which, as in the paper's code.
        resize: key of `RESIZES`.
    Returns:
        bool (h, w).
    Raises:
        ValueError: unknown `resize`.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize: got {resize!r}, expected one of {', '.join(RESIZES)}")
    return from_square(square, size, threshold, resize)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("plain", "Every row is one sample; pixels marked as ignored count nowhere."),
        Protocol("per-sentence", "RefCOCO as usual: every expression is one sample.", joined=False),
        Protocol(
            "all-sentences",
            "The paper's code on RefCOCO: every referent is one sample, its expressions joined in one question.",
            joined=True,
        ),
        Protocol(
            "lisa",
            "ReasonSeg as in LISA: the first text of an image is asked; ignored pixels count nowhere.",
            joined=False,
            first=True,
        ),
        Protocol(
            "himtok",
            "ReasonSeg as in the paper's code: the first text of an image is asked; ignored pixels count as foreground "
            "of prediction and target.",
            joined=False,
            first=True,
            ignore="foreground",
        ),
        Protocol(
            "grefcoco-50px",
            "gRefCOCO: predictions of fewer than 50 pixels count as no target; P@x over samples with a target.",
            least_pixels=50,
            precision_over_targets=True,
        ),
        Protocol(
            "grefcoco",
            "gRefCOCO without the 50-pixel rule: one predicted pixel is an answer; P@x over samples with a target.",
            precision_over_targets=True,
        ),
    )
}
PLAIN = PROTOCOLS["plain"]


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name; raise a ValueError if there is none."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
