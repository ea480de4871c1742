"""Who answers: a checkpoint that is loaded here, or a server.

Contract: `answer` takes questions and returns as many results, in order. A question that cannot be answered has its
reason instead, and costs the others nothing; only a server that nobody reaches ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from himtok_plugin.client import MaskClient, ServerUnreachableError
from himtok_plugin.files.images import to_upright_rgb
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER, count_placeholders
from himtok_plugin.prediction.question_text import format_question
from himtok_plugin.prediction.segmentation_result import SegmentationResult

if TYPE_CHECKING:
    from himtok_plugin import Segmenter

QUESTIONS_AT_ONCE = 8


@dataclass(frozen=True)
class FileQuestion:
    """What is asked about an image file: an expression, or a whole question."""

    image: Path
    expression: str


Answer = SegmentationResult | str  # a result, or why there is none


class Answerer(Protocol):
    """Answers questions about image files."""

    batch_size: int

    def answer(self, questions: Sequence[FileQuestion]) -> list[Answer]:
        """Answer at most `batch_size` questions, in order."""
        ...


class LocalAnswerer:
    """A checkpoint in this process.

    Args:
        segmenter: the loaded checkpoint.
    """

    batch_size = QUESTIONS_AT_ONCE

    def __init__(self, segmenter: Segmenter):
        self._segmenter = segmenter

    def answer(self, questions: Sequence[FileQuestion]) -> list[Answer]:
        """Answer questions in one batch; if that fails, one by one, so that a bad one fails alone."""
        answers: dict[int, Answer] = {}
        images: dict[int, Image.Image] = {}
        for i, question in enumerate(questions):
            try:
                images[i] = open_image(question.image)
            except ValueError as error:
                answers[i] = str(error)
        for i, answer in zip(images, self._answer_batch(questions, images), strict=True):
            answers[i] = answer
        return [answers[i] for i in range(len(questions))]

    def _answer_batch(self, questions: Sequence[FileQuestion], images: dict[int, Image.Image]) -> list[Answer]:
        if not images:
            return []
        try:
            return list(self._segmenter(list(images.values()), [questions[i].expression for i in images]))
        except Exception as error:  # ms-swift and its templates raise many types
            if len(images) == 1:
                return [" ".join(str(error).split()) or type(error).__name__]
        return [each for i, image in images.items() for each in self._answer_batch(questions, {i: image})]


class ServerAnswerer:
    """A server of `swift deploy --plugin himtok`.

    Args:
        client: of the server.
        question: the question for a bare expression, with one `{}`.
    """

    batch_size = 1

    def __init__(self, client: MaskClient, question: str):
        self._client = client
        self._question = question

    def answer(self, questions: Sequence[FileQuestion]) -> list[Answer]:
        """Ask the questions in turn.

        Raises:
            ServerUnreachableError: nothing answers at the server's address.
        """
        return [self._ask(question) for question in questions]

    def _ask(self, question: FileQuestion) -> Answer:
        try:
            image = open_image(question.image)
            text = IMAGE_PLACEHOLDER + format_question(self._question, question.expression)
            messages = [{"role": "user", "content": text}]
            update = list(self._client.ask(messages, [question.image]))[-1]
        except ServerUnreachableError:
            raise
        except ValueError as error:  # a refusal of the server is one as well
            return str(error)
        row: dict[str, Any] = {
            "response": update.text,
            "masks": update.segments,
            "messages": [*messages, {"role": "assistant", "content": update.text}],
        }
        if update.unknown_words:
            row["unknown_words"] = update.unknown_words
        return SegmentationResult.from_row(row, (image.height, image.width), image)


def open_image(path: Path) -> Image.Image:
    """Read an image file, upright and in RGB.

    Raises:
        ValueError: it cannot be read, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            return to_upright_rgb(image, "image")
    except Exception as error:  # Pillow's readers raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image: got {str(path)!r}, which cannot be read ({reason:.200})") from error


def check_expression(expression: str) -> None:
    """Check that a question can be asked about a file alone.

    Raises:
        ValueError: it is empty, has a `<mask>`, or is the name of an image file.
    """
    if not expression.strip():
        raise ValueError("expression: got an empty text, expected what to segment, such as 'the dog on the left'")
    if count_placeholders(expression):
        raise ValueError(f"expression: got {expression!r}, expected no {MASK_PLACEHOLDER}: ask about regions in Python")
