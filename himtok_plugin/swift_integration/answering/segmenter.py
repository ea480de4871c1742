"""A checkpoint as a Python object: `Segmenter.from_pretrained(folder)("photo.jpg", "the dog on the left")`.

Contract: what `swift infer --plugin himtok` does, with the same template, engine and options, for images and questions
that are at hand. Rows go to ms-swift's `TransformersEngine`; masks come from `prediction.py`, as everywhere. Does not
know how masks are decoded, refined or scored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from himtok_plugin import startup
from himtok_plugin.mask_text import (
    BOX_PLACEHOLDER,
    IMAGE_PLACEHOLDER,
    MASK_PLACEHOLDER,
    count_placeholders,
)
from himtok_plugin.masks.sources import MaskSource
from himtok_plugin.metrics.boxes import NORMALIZED_SIDE
from himtok_plugin.prediction.segmentation_result import SegmentationResult

if TYPE_CHECKING:
    from swift.infer_engine import TransformersEngine

ImageSource = str | os.PathLike | Image.Image | np.ndarray

QUESTION = "Segment {}."  # as in the rows of README.md
QUESTION_ENDS = (".", "?", "!", "。", "？", "！")
MAX_NEW_TOKENS = 512  # a dozen masks of 32 tokens with words around them


class Segmenter:
    """A segmenting LMM that answers questions about images with text and masks.

    Args:
        engine: ms-swift's engine with a model and a template that `--plugin himtok` has extended.
        question: what an expression is put into, with one `{}`.
        max_new_tokens: tokens of an answer at most.
        temperature: 0 takes the most probable token each time.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        question: str = QUESTION,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
    ):
        from swift.infer_engine import RequestConfig

        from himtok_plugin.swift_integration.model.mask_runtime import get_mask_runtime

        if question.count("{}") != 1:
            raise ValueError(f"question is {question!r}: expected one {{}} for the expression")
        if get_mask_runtime(engine.template) is None:
            raise ValueError("engine has no masks: expected a multimodal model loaded with --plugin himtok")
        self.engine = engine
        self.question = question
        self.request_config = RequestConfig(max_tokens=max_new_tokens, temperature=temperature)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike,
        adapters: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        device: str | None = None,
        max_batch_size: int = 8,
        question: str = QUESTION,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        **options: Any,
    ) -> Segmenter:
        """Load a checkpoint with its mask tokenizer.

        Call it before anything else imports ms-swift, or call `himtok_plugin.startup.activate()` first.

        Args:
            checkpoint: folder or hub id of the model, or "default", the tiny one that ships; a folder of an adapter is
                found to be one, its base is then the model that it was trained on.
            adapters: adapters on top of it.
            device: `cpu`, `cuda:0`, …; by default a GPU if there is one.
            max_batch_size: questions that are answered together.
            question, max_new_tokens, temperature: see the class.
            options: any other option of `swift infer --plugin himtok`, such as mask_tokenizer, mask_decoding,
                num_mask_tokens, mask_threshold, min_score, refiner, system, torch_dtype.
        Raises:
            ValueError: an option that does not exist or does not fit, or a checkpoint without a mask tokenizer.
            RuntimeError: ms-swift's arguments were imported before the plugin was activated.
        """
        startup.activate("himtok")
        from dataclasses import fields

        from swift.arguments import InferArguments
        from swift.infer_engine import TransformersEngine
        from swift.pipelines.utils import prepare_model_template

        known = {f.name for f in fields(InferArguments) if f.init}
        unknown = sorted(options.keys() - known)
        if unknown:
            raise ValueError(f"options has {unknown}: expected options of `swift infer --plugin himtok`")
        checkpoint = os.fspath(checkpoint)
        folders = [adapters] if isinstance(adapters, str | os.PathLike) else adapters or []
        chosen: dict[str, Any] = {"model": checkpoint, "adapters": [os.fspath(folder) for folder in folders]}
        if os.path.isfile(os.path.join(checkpoint, "adapter_config.json")):
            chosen = {"adapters": [checkpoint, *chosen["adapters"]]}
        if device is not None:
            chosen["device_map"] = device
        arguments = InferArguments(**chosen, **options)
        model, template = prepare_model_template(arguments)
        engine = TransformersEngine(model, template=template, max_batch_size=max_batch_size)
        return cls(engine, question, max_new_tokens, temperature)

    def __call__(
        self,
        image: ImageSource | Sequence[ImageSource],
        expression: str | Sequence[str],
        *,
        masks: Sequence[MaskSource] | None = None,
        boxes: Sequence[Sequence[float]] | None = None,
        history: SegmentationResult | Sequence[Mapping[str, Any]] | None = None,
    ) -> SegmentationResult | list[SegmentationResult]:
        """Ask about an image, or about several at once.

        A bare expression ("the dog on the left") is put into the question template. A text that ends like a sentence
        (`.`, `?`, `!`) or holds a placeholder is a question of its own and goes to the model as it is.

        Args:
            image: path, URL, PIL image, or uint8 array (h, w) or (h, w, 3); a list of them for a batch.
            expression: what to segment, or a whole question; a list for a batch. One image with several expressions,
                or several images with one, are a batch as well.
            masks: one mask of the image's size for each `<mask>` in the question.
            boxes: x1, y1, x2, y2 in pixels for each `<bbox>` in the question.
            history: earlier turns about the same image: the result of the last one, or messages whose last is the
                answer (`masks` and `boxes` then hold those of all turns).
        Returns:
            One result, or in a batch one per question.
        Raises:
            ValueError: an image that cannot be read, another number of images than of expressions, masks, boxes or
                history in a batch, or masks and boxes that do not fit the placeholders.
        """
        many_images = isinstance(image, list | tuple)
        many_texts = not isinstance(expression, str)
        if not many_images and not many_texts:
            return self.answer([self._row(image, expression, masks, boxes, history)])[0]
        if masks is not None or boxes is not None or history is not None:
            raise ValueError("masks, boxes or history given for a batch: expected rows for `answer`, or one at a time")
        images = list(image) if many_images else [image] * len(expression)
        texts = list(expression) if many_texts else [expression] * len(images)
        if len(images) != len(texts):
            raise ValueError(f"expression has {len(texts)} entries: expected one for each of the {len(images)} images")
        return self.answer([self._row(*pair, None, None, None) for pair in zip(images, texts, strict=True)])

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[SegmentationResult]:
        """Answer dataset rows: `messages` whose last is a question, `images`, `masks`, `objects`.

        Args:
            rows: as for `swift infer`, but images and masks may be objects as well as paths.
        Returns:
            One result per row, in order; masks have the size of the row's first image.
        Raises:
            ValueError: a row that cannot be asked.
        """
        from .response_masks import RESPONSE_ATTRIBUTE

        prepared = []
        for row in rows:
            images = row.get("images") or []
            if not row.get("messages") or row["messages"][-1]["role"] != "user" or not images:
                raise ValueError("row: expected images, and messages of which the last is the user's")
            prepared.append({**row, "images": [_load_image(image) for image in images]})
        responses = self.engine.infer(prepared, self.request_config, use_tqdm=False)
        box_side = NORMALIZED_SIDE if self.engine.template.norm_bbox == "norm1000" else None
        results = []
        for row, response in zip(prepared, responses, strict=True):
            message = response.choices[0].message
            image = row["images"][0]
            row["messages"] = [*row["messages"], {"role": "assistant", "content": message.content}]
            predicted = getattr(message, RESPONSE_ATTRIBUTE, [])
            size = image.height, image.width
            results.append(SegmentationResult.from_masks(message.content, predicted, size, image, row, box_side))
        return results

    def _row(self, image: ImageSource, text: str, masks, boxes, history) -> dict[str, Any]:
        """The dataset row of one question."""
        earlier: dict[str, Any] = {}
        if isinstance(history, SegmentationResult):
            earlier = history.row
        elif history is not None:
            earlier = {"messages": [dict(message) for message in history]}
        messages = list(earlier.get("messages") or [])
        if messages and messages[-1]["role"] != "assistant":
            raise ValueError(
                f"history ends with a message of {messages[-1]['role']!r}: expected the assistant's answer"
            )
        masks = [*(earlier.get("masks") or []), *(masks or [])]
        boxes = [*((earlier.get("objects") or {}).get("bbox") or []), *(list(map(float, box)) for box in boxes or [])]
        question = self._question(text)
        texts = [m["content"] for m in messages if isinstance(m["content"], str)]
        if not any(IMAGE_PLACEHOLDER in text for text in (*texts, question)):
            if messages:
                first = next(i for i, message in enumerate(messages) if message["role"] == "user")
                messages[first] = {**messages[first], "content": IMAGE_PLACEHOLDER + messages[first]["content"]}
            else:
                question = IMAGE_PLACEHOLDER + question
        messages.append({"role": "user", "content": question})
        texts = [m["content"] for m in messages if isinstance(m["content"], str)]
        for name, given, placeholders, placeholder in (
            ("masks", masks, sum(map(count_placeholders, texts)), MASK_PLACEHOLDER),
            ("boxes", boxes, sum(text.count(BOX_PLACEHOLDER) for text in texts), BOX_PLACEHOLDER),
        ):
            if len(given) != placeholders:
                raise ValueError(
                    f"{name} has {len(given)} entries: expected one for each of {placeholders} {placeholder}"
                )
        row: dict[str, Any] = {"messages": messages, "images": [image], "masks": masks}
        return {**row, "objects": {"bbox": boxes, "ref": []}} if boxes else row

    def _question(self, text: str) -> str:
        text = text.strip()
        if not text:
            raise ValueError("expression is empty: expected what to segment, or a question")
        placeholders = (IMAGE_PLACEHOLDER, MASK_PLACEHOLDER, BOX_PLACEHOLDER)
        if text.endswith(QUESTION_ENDS) or any(placeholder in text for placeholder in placeholders):
            return text
        return self.question.format(text)


def _load_image(image: Any) -> Image.Image:
    """RGB image of any source.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(f"image is {image.dtype} {image.shape}: expected uint8 (h, w) or (h, w, 3)")
        return Image.fromarray(image).convert("RGB")
    from himtok_plugin.swift_integration.samples.sample_images import load_sample_image

    try:
        return load_sample_image(os.fspath(image) if isinstance(image, os.PathLike) else image)
    except Exception as error:  # PIL's readers and ms-swift's downloads raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image {str(image)!r:.200} cannot be read ({reason}): expected an image") from error
