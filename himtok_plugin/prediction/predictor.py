"""Decode answers into masks: text or token ids, with or without code probabilities -> masks of the image's size.

Every engine and the command line use `MaskPredictor`. It decodes the masks of a whole batch of answers together. An
answer without a mask yields an empty list. A malformed mask is marked as incomplete and decoded from the codes it has.
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
from himtok_plugin.mask_text import MASK_END, MASK_START, MaskSpan, mask_token, text_to_codes
from himtok_plugin.mask_tokenizer.modeling import MaskTokenizer
from himtok_plugin.masks import Resize, from_square, to_rle

from .calibration import Calibration, mask_certainty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decoding = Literal["soft", "hard"]
MAX_BATCH = 64  # masks decoded at once; bounds memory, and larger batches are not faster
UNDECODED_TEXT = "\ufffd"  # in place of text whose token ids are known but not its characters


@dataclass(frozen=True)
class Answer:
    """The answer of an LMM to a question about one image.

    Attributes:
        text: the generated text.
        size: (h, w) of the image.
        probabilities: (n, v) float32, the code probabilities at each of the n codes in the text, in order; None if the
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
        """Make an answer from generated token ids.

        Args:
            ids: (n,) integers, without the prompt's.
            vocabulary: ids of the mask tokens.
            size, probabilities: see the class.
            tokenizer: text tokenizer that decodes the text between masks; it leaves special tokens out. Without it,
                U+FFFD stands for each stretch of text, so a mask with text inside is still malformed.
        Raises:
            ValueError: `ids` is not a flat list of integers, or the tokenizer decodes them to other codes.
        """
        values = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise ValueError(f"ids is {values!r:.80}: expected integers (n,)")
        tokens = {vocabulary.start_id: MASK_START, vocabulary.end_id: MASK_END}
        tokens |= {vocabulary.first_code_id + code: mask_token(code) for code in range(vocabulary.codebook_size)}
        masks = "".join(
            "".join(tokens[value] for value in run) if is_mask_text else UNDECODED_TEXT
            for is_mask_text, run in groupby(values, tokens.__contains__)
        )
        if tokenizer is None:
            return cls(masks, size, probabilities)
        text = str(tokenizer.decode(values, skip_special_tokens=True))
        decoded, expected = (
            [code for span in text_to_codes(each, max_tokens=len(values)) for code in span.codes]
            for each in (text, masks)
        )
        if decoded != expected:
            raise ValueError(
                f"tokenizer: it decodes the ids to the codes {decoded!r:.80}, expected {expected!r:.80}; pass the text "
                "tokenizer that the vocabulary was read from"
            )
        return cls(text, size, probabilities)


@dataclass(frozen=True)
class PredictedMask:
    """One mask of an answer.

    Attributes:
        mask: bool (h, w).
        codes: the codes as written.
        score: confidence in [0, 1]: the expected IoU with a calibration, else `mask_certainty`; None if no
            probabilities were recorded.
        complete: False if the mask text is cut or malformed; the mask is then decoded from the codes it has.
        start, end: character span in the answer's text.
        raw_score: the score before calibration; None without a calibration.
        square: float32 (s, s) mask probabilities; None unless `MaskPredictor` has `keep_squares`.
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

        With a calibration also "raw_score", which `himtok calibrate` uses.
        """
        row = {**to_rle(self.mask), "codes": self.codes, "score": self.score, "complete": self.complete}
        return row if self.raw_score is None else {**row, "raw_score": self.raw_score}


class MaskPredictor:
    """Decodes answers into masks with a mask tokenizer.

    Args:
        mask_tokenizer: decodes on its own device and in its own dtype.
        decoding: `soft` decodes the recorded probabilities, or the codes if there are none; `hard` always the codes.
        threshold: mask probability from which a pixel belongs to the mask, in (0, 1).
        calibration: maps raw scores to expected IoU.
        min_score: masks with a lower score are dropped; masks without a score are kept.
        keep_squares: whether masks keep their probabilities, which refiners use.
        resize: how probabilities are resized to the image, see `masks.from_square`.
    Raises:
        ValueError: unknown `decoding`.
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
    ) -> None:
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
        """Decode the masks of each answer, in order of appearance.

        Spans without any code and masks below `min_score` are left out.

        Raises:
            ValueError: the number of probabilities differs from the number of codes in the text.
        """
        config = self.mask_tokenizer.config
        found: list[tuple[int, MaskSpan, Tensor | None]] = []  # (answer, span, probabilities of its codes)
        for index, answer in enumerate(answers):
            taken = 0
            spans = text_to_codes(answer.text, config.codebook_size, config.num_mask_tokens)
            total = sum(len(span.codes) for span in spans)
            if answer.probabilities is not None and len(answer.probabilities) != total:
                raise ValueError(
                    f"probabilities: got those of {len(answer.probabilities)} codes, expected {total} as in the text"
                )
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
        """Decode (codes, probabilities) to float32 (s, s) each; masks of equal length and decoding share a batch."""
        device = self.mask_tokenizer.device
        groups: dict[tuple[int, bool], list[tuple[int, Tensor]]] = defaultdict(list)
        for i, (codes, own) in enumerate(masks):
            coded = own if own is not None and self.decoding == "soft" else torch.tensor(codes)
            groups[len(codes), coded is own].append((i, coded))
        squares: dict[int, np.ndarray] = {}
        for (_, soft), members in groups.items():
            decode = self.mask_tokenizer.decode_probabilities if soft else self.mask_tokenizer.decode
            for begin in range(0, len(members), MAX_BATCH):
                batch = members[begin : begin + MAX_BATCH]
                decoded = decode(torch.stack([tensor for _, tensor in batch]).to(device))
                squares.update(zip([i for i, _ in batch], decoded.cpu().numpy(), strict=True))
        return [squares[i] for i in range(len(masks))]
