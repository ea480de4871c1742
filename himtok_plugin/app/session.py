"""What one browser tab has asked: images, each with a conversation and its masks.

Contract: pure state without gradio and without a server. `Conversation.start_turn` checks a question and its regions;
answers are added to the turn as they come. A turn that has failed is shown, and left out of what is asked next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from himtok_plugin.mask_text import MASK_PLACEHOLDER, MaskSpan, count_placeholders, text_to_codes
from himtok_plugin.masks import to_rle
from himtok_plugin.masks.rle import rle_to_mask
from himtok_plugin.prediction.segmentation_result import UNCERTAIN_BELOW
from himtok_plugin.validation import counted

from .mask_requests import asks_for_masks
from .regions import make_region_mask
from .uploads import UploadedImage

Rle = Mapping[str, Any]


@dataclass
class MaskLayer:
    """A mask that is drawn over the image.

    Attributes:
        id: unique in a conversation.
        number: from 1, as the page shows it; masks of answers and regions are counted apart.
        rle: {"size": [h, w], "counts": …} of the image's size.
        label: what the answer calls it.
        score: in [0, 1]; None if the server has recorded no probabilities.
        complete: False for a mask whose text is cut or malformed.
        codes: its mask tokens.
        prefixes: number of tokens → RLE of the mask after so many, perhaps smaller than the image.
        is_region: whether the user has marked it.
    """

    id: str
    number: int
    rle: Rle
    label: str | None = None
    score: float | None = None
    complete: bool = True
    codes: Sequence[int] = ()
    prefixes: dict[int, Rle] = field(default_factory=dict)
    is_region: bool = False

    @property
    def name(self) -> str:
        """What the page calls the mask: its label, or a number."""
        return self.label or (f"region {self.number}" if self.is_region else f"mask {self.number}")

    @property
    def is_uncertain(self) -> bool:
        """Whether the score says that the mask is more likely wrong than right."""
        return self.score is not None and self.score < UNCERTAIN_BELOW

    def to_mask(self) -> np.ndarray:
        """The mask, bool (h, w)."""
        return rle_to_mask(self.rle["counts"], self.rle["size"])


@dataclass
class Turn:
    """A question and its answer.

    Attributes:
        question: as asked, with a `<mask>` for every region.
        regions: the masks of these.
        answer: the text so far, mask tokens included.
        masks: the closed masks so far, in order.
        open_prefixes: prefixes of the mask that is being written.
        unknown_words: words of the question that no question of the model's training had.
        error: a sentence, if the question has failed.
        is_finished: whether nothing more comes.
        is_stopped: whether the user has stopped the answer.
        is_cut: whether the answer has reached its maximum number of tokens.
    """

    question: str
    regions: list[MaskLayer] = field(default_factory=list)
    answer: str = ""
    masks: list[MaskLayer] = field(default_factory=list)
    open_prefixes: dict[int, Rle] = field(default_factory=dict)
    unknown_words: list[str] = field(default_factory=list)
    error: str | None = None
    is_finished: bool = False
    is_stopped: bool = False
    is_cut: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether the question has a whole answer, with which the conversation can go on."""
        return self.is_finished and not self.is_stopped and self.error is None and bool(self.answer)

    @property
    def has_no_target(self) -> bool:
        """Whether a request for masks that marks no region was answered in full without a mask."""
        if not self.is_answered or self.masks or self.regions or text_to_codes(self.answer):
            return False
        return asks_for_masks(self.question, self.answer)

    def match_masks(self) -> Iterator[tuple[MaskSpan, MaskLayer | None]]:
        """Pair each mask text of the answer with its mask; None for one that is still written, or that was dropped."""
        left = list(self.masks)
        for span in text_to_codes(self.answer):
            found = left[0] if left and list(left[0].codes) == span.codes else None
            if found:
                left.pop(0)
            yield span, found


@dataclass
class Conversation:
    """An image, and the turns about it; `number` tells the conversations that a tab has had apart."""

    image: UploadedImage
    turns: list[Turn] = field(default_factory=list)
    number: int = 0
    _ids: Iterator[int] = field(default_factory=itertools.count)

    @property
    def masks(self) -> list[MaskLayer]:
        """The masks of all answers, in order."""
        return [mask for turn in self.turns for mask in turn.masks]

    @property
    def layers(self) -> list[MaskLayer]:
        """All masks to draw: of each turn first the regions, then the answer's."""
        return [layer for turn in self.turns for layer in (*turn.regions, *turn.masks)]

    @property
    def num_tokens(self) -> int:
        """The largest number of tokens of a mask; 0 without masks."""
        return max((len(mask.codes) for mask in self.masks), default=0)

    def start_turn(self, question: str, regions: Sequence[Mapping[str, Any]] = (), max_masks: int = 16) -> Turn:
        """Check a question and begin its turn.

        Args:
            question: its text.
            regions: see `regions.make_region_mask`, one for each `<mask>` of the text, in order.
            max_masks: the most masks that the server takes in a request, those of earlier turns included.
        Raises:
            ValueError: the question is empty, does not fit its regions, or a region is malformed.
        """
        question = question.strip()
        if not question.replace(MASK_PLACEHOLDER, "").strip(" .?!"):
            raise ValueError("question: got no words, expected a request such as “Segment the dog on the left.”")
        placeholders = count_placeholders(question)
        if placeholders != len(regions):
            raise ValueError(
                f"question: got {placeholders} {MASK_PLACEHOLDER} for {counted(len(regions), 'marked region')}, "
                f"expected one {MASK_PLACEHOLDER} for each region: mark one in the image, or remove it"
            )
        before = self._answered_regions()
        if len(before) + len(regions) > max_masks:
            raise ValueError(
                f"regions: got {len(before) + len(regions)} in this conversation, expected at most {max_masks}, the "
                "server's limit: clear the conversation"
            )
        known = {layer.id: layer for layer in self.layers}
        answers = {
            region["mask"]: known[region["mask"]].to_mask()
            for region in regions
            if isinstance(region, Mapping) and isinstance(region.get("mask"), str) and region["mask"] in known
        }
        masks = [make_region_mask(region, self.image.size, answers) for region in regions]
        first = 1 + sum(len(turn.regions) for turn in self.turns)
        layers = [MaskLayer(self.new_id(), first + i, to_rle(mask), is_region=True) for i, mask in enumerate(masks)]
        self.turns.append(Turn(question, layers))
        return self.turns[-1]

    def add_mask(self, turn: Turn, segment: Mapping[str, Any]) -> MaskLayer:
        """Add a closed mask of the answer; the previews before it become its prefixes.

        Args:
            turn: the answer's.
            segment: of the server's answer (docs/serving.md).
        """
        layer = MaskLayer(
            self.new_id(),
            len(self.masks) + 1,
            {"size": list(segment["size"]), "counts": segment["counts"]},
            segment.get("label"),
            segment.get("score"),
            bool(segment.get("complete", True)),
            list(segment.get("codes") or ()),
            turn.open_prefixes,
        )
        turn.open_prefixes = {}
        turn.masks.append(layer)
        return layer

    def messages(self) -> list[dict[str, str]]:
        """The turns as chat messages: those that were answered, and last the question that is open."""
        messages = []
        for turn in self.turns:
            if turn.is_answered or not turn.is_finished:
                messages.append({"role": "user", "content": turn.question})
            if turn.is_answered:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def region_masks(self) -> list[Rle]:
        """The masks of all `<mask>` in `messages`."""
        open_ones = [layer.rle for turn in self.turns if not turn.is_finished for layer in turn.regions]
        return [layer.rle for layer in self._answered_regions()] + open_ones

    def new_id(self) -> str:
        """Return an id for a layer."""
        return f"m{next(self._ids)}"

    def _answered_regions(self) -> list[MaskLayer]:
        return [layer for turn in self.turns if turn.is_answered for layer in turn.regions]


@dataclass
class Session:
    """All conversations of a tab, and the one that is shown."""

    conversations: list[Conversation] = field(default_factory=list)
    index: int = 0
    begun: int = 0  # conversations, also those that were cleared

    @property
    def current(self) -> Conversation | None:
        """The conversation that is shown; None before the first image."""
        return self.conversations[self.index] if self.conversations else None

    def add_image(self, image: UploadedImage) -> Conversation:
        """Begin a conversation about an image, and show it."""
        self.conversations.append(self._begin(image))
        self.index = len(self.conversations) - 1
        return self.conversations[-1]

    def show(self, index: int) -> None:
        """Show the conversation of a number from 0."""
        if not 0 <= index < len(self.conversations):
            raise ValueError(f"image: got number {index}, expected one from 0 to {len(self.conversations) - 1}")
        self.index = index

    def clear_current(self) -> None:
        """Begin the conversation about the current image anew."""
        if self.conversations:
            self.conversations[self.index] = self._begin(self.conversations[self.index].image)

    def names(self) -> list[str]:
        """What each image is called, numbered."""
        return [f"{i}. {each.image.name}" for i, each in enumerate(self.conversations, 1)]

    def _begin(self, image: UploadedImage) -> Conversation:
        self.begun += 1
        return Conversation(image, number=self.begun)
