"""The one way from an answer to masks: text or token ids, with or without code probabilities -> masks of image size.

Every engine and the command line go through `MaskPredictor`. Masks of a whole batch are decoded together. An answer
without a mask gives an empty list; a malformed mask is marked, never guessed. Does not know how the answer came about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_text import MASK_END, MASK_START, mask_token, text_to_codes
from himtok_plugin.mask_tokenizer.modeling import MaskTokenizer
from himtok_plugin.masks.sources import Resize, from_square, to_rle

from .calibration import Calibration, mask_certainty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decoding = Literal["soft", "hard"]
MAX_BATCH = 64  # masks decoded at once: bounds memory, far above where the speed levels off
UNDECODED_TEXT = "\ufffd"  # stands for words of which only the ids are known


@dataclass(frozen=True)
class Answer:
    """An answer to be turned into masks.

    Attributes:
        text: what the LMM wrote.
        size: (h, w) of the image that the masks belong to.
        probabilities: for every code in the text, in order, its (v,) probabilities: (codes, v) float32; None when the
            engine did not record them.
    """

    text: str
    size: tuple[int, int]
    probabilities: Tensor | None = None

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[int] | Tensor,
        vocabulary: MaskVocabulary,
        size: tuple[int, int],
        probabilities: Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Answer:
        """Answer of generated token ids.

        Args:
            ids: (n,) integers, the prompt's left out.
            vocabulary: where the mask tokens stand among them.
            size, probabilities: see the class.
            tokenizer: text tokenizer that knows the words as well, of which special ones are left out. Without it
                U+FFFD stands for them, so that a mask with anything inside is malformed all the same.
        Raises:
            ValueError: ids that are no row of integers, or a tokenizer that writes other codes than these ids.
        """
        values = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise ValueError(f"ids is {values!r:.80}: expected integers (n,)")
        tokens = {vocabulary.start_id: MASK_START, vocabulary.end_id: MASK_END}
        tokens |= {vocabulary.first_code_id + code: mask_token(code) for code in range(vocabulary.codebook_size)}
        masks = "".join(
            "".join(tokens[value] for value in run) if known else UNDECODED_TEXT
            for known, run in groupby(values, tokens.__contains__)
        )
        if tokenizer is None:
            return cls(masks, size, probabilities)
        text = tokenizer.decode(values, skip_special_tokens=True)
        written, expected = (
            [code for span in text_to_codes(each, max_tokens=len(values)) for code in span.codes]
            for each in (text, masks)
        )
        if written != expected:
            raise ValueError(
                f"tokenizer writes the codes {written!r:.80} for ids of {expected!r:.80}: expected the text tokenizer "
                "that the vocabulary was read from"
            )
        return cls(text, size, probabilities)


@dataclass(frozen=True)
class PredictedMask:
    """One mask of an answer.

    Attributes:
        mask: bool (h, w).
        codes: the codes as written.
        score: confidence in [0, 1], None when no probabilities were recorded: how certain the decoded mask is
            (`mask_certainty`), or with a calibration the IoU to be expected.
        complete: False if the mask text is cut or malformed; the mask is then that of the codes that are there.
        start, end: character span in the answer's text.
        raw_score: what `score` was before calibration; None without one.
        square: float32 (s, s) mask probabilities, where `MaskPredictor` was asked to keep them.
    """

    mask: np.ndarray
    codes: list[int]
    score: float | None
    complete: bool
    start: int
    end: int
    raw_score: float | None = None
    square: np.ndarray | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: {"size": [h, w], "counts": RLE, "codes": [...], "score": p, "complete": bool}.

        With a calibration there is also "raw_score", which `himtok calibrate` starts from.
        """
        row = {**to_rle(self.mask), "codes": self.codes, "score": self.score, "complete": self.complete}
        return row if self.raw_score is None else {**row, "raw_score": self.raw_score}


class MaskPredictor:
    """Turns answers into masks with a mask tokenizer.

    Args:
        mask_tokenizer: decodes, on the device and in the dtype it has.
        decoding: `soft` decodes recorded probabilities where there are any, `hard` the codes alone.
        threshold: mask probability from which a pixel belongs to the mask, in (0, 1).
        calibration: turns raw scores into expected IoU.
        min_score: masks with a lower score are left out; those without a score stay, nothing speaks against them.
        keep_squares: whether masks carry their probabilities, which refiners want.
        resize: how probabilities get to the image's size, see `masks.from_square`.
    """

    def __init__(
        self,
        mask_tokenizer: MaskTokenizer,
        decoding: Decoding = "soft",
        threshold: float = 0.5,
        calibration: Calibration | None = None,
        min_score: float = 0.0,
        keep_squares: bool = False,
        resize: Resize = "bilinear",
    ):
        if decoding not in ("soft", "hard"):
            raise ValueError(f"decoding={decoding!r}: expected 'soft' or 'hard'")
        self.mask_tokenizer = mask_tokenizer
        self.decoding = decoding
        self.threshold = threshold
        self.calibration = calibration
        self.min_score = min_score
        self.keep_squares = keep_squares
        self.resize = resize

    @torch.inference_mode()
    def __call__(self, answers: list[Answer]) -> list[list[PredictedMask]]:
        """Masks of each answer, in order of appearance; spans without a single code, or below `min_score`, yield none.

        Raises:
            ValueError: probabilities that do not belong to the text.
        """
        config = self.mask_tokenizer.config
        found = []  # (answer, span, probabilities of its codes or None)
        for index, answer in enumerate(answers):
            taken = 0
            spans = text_to_codes(answer.text, config.codebook_size, config.num_mask_tokens)
            total = sum(len(span.codes) for span in spans)
            if answer.probabilities is not None and len(answer.probabilities) != total:
                raise ValueError(f"probabilities of {len(answer.probabilities)} codes for a text with {total}")
            for span in spans:
                own = None if answer.probabilities is None else answer.probabilities[taken : taken + len(span.codes)]
                taken += len(span.codes)
                if span.codes:
                    found.append((index, span, own))
        squares = self._decode([(span.codes, own) for _, span, own in found])
        results: list[list[PredictedMask]] = [[] for _ in answers]
        for (index, span, own), square in zip(found, squares, strict=True):
            raw = None if own is None else mask_certainty(square, self.threshold)
            score = raw if raw is None or self.calibration is None else self.calibration(raw)
            if score is not None and score < self.min_score:
                continue
            results[index].append(
                PredictedMask(
                    mask=from_square(square, answers[index].size, self.threshold, self.resize),
                    codes=list(span.codes),
                    score=score,
                    complete=span.complete,
                    start=span.start,
                    end=span.end,
                    raw_score=None if self.calibration is None else raw,
                    square=square if self.keep_squares else None,
                )
            )
        return results

    def _decode(self, masks: list[tuple[list[int], Tensor | None]]) -> list[np.ndarray]:
        """float32 (s, s) of each; masks of the same length and kind share a batch."""
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for i, (codes, own) in enumerate(masks):
            groups[len(codes), own is not None and self.decoding == "soft"].append(i)
        squares: list[np.ndarray] = [None] * len(masks)
        device = self.mask_tokenizer.device
        for (_, soft), members in groups.items():
            for begin in range(0, len(members), MAX_BATCH):
                batch = members[begin : begin + MAX_BATCH]
                if soft:
                    decoded = self.mask_tokenizer.decode_probabilities(
                        torch.stack([masks[i][1] for i in batch]).to(device)
                    )
                else:
                    decoded = self.mask_tokenizer.decode(torch.tensor([masks[i][0] for i in batch], device=device))
                for i, square in zip(batch, decoded.cpu().numpy(), strict=True):
                    squares[i] = square
        return squares
