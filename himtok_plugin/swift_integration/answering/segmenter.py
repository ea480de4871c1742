"""A checkpoint as a Python object: `Segmenter.from_pretrained(folder)("photo.jpg", "the dog on the left")`.

Contract: it answers as `swift infer --plugin himtok` does, with the same template, engine and options, for images and
questions in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from himtok_plugin import startup
from himtok_plugin.masks import MaskSource
from himtok_plugin.metrics.boxes import NORMALIZED_SIDE
from himtok_plugin.prediction.question_text import QUESTION
from himtok_plugin.prediction.segmentation_result import SegmentationResult

from .question_samples import ImageSource, build_question_sample, load_image_source

if TYPE_CHECKING:
    from swift.infer_engine import TransformersEngine

MAX_NEW_TOKENS = 512  # a dozen masks of 32 mask tokens with text between them


class Segmenter:
    """A segmenting LMM that answers questions about images with text and masks.

    Args:
        engine: ms-swift's engine with a model and a template that `--plugin himtok` has extended.
        question: the question for a bare expression, with one `{}` for the expression.
        max_new_tokens: maximum number of tokens of an answer.
        temperature: of sampling; 0 always takes the most probable token.
    Raises:
        ValueError: `question` has another number of `{}`, or the engine's model was loaded without the plugin.
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
        runtime = get_mask_runtime(engine.template)
        if runtime is None:
            raise ValueError("engine has no masks: expected a multimodal model loaded with --plugin himtok")
        self.engine = engine
        self._runtime = runtime
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
            checkpoint: folder or hub id of the model, or "default", the tiny one that ships with the package. It can be
                the folder of an adapter; its base model is then the one that it was trained on.
            adapters: further adapters.
            device: `cpu`, `cuda:0`, …; None: a GPU if there is one.
            max_batch_size: maximum number of questions that are answered together.
            question, max_new_tokens, temperature: see the class.
            options: any other option of `swift infer --plugin himtok`, such as mask_tokenizer, mask_decoding,
                num_mask_tokens, mask_threshold, min_score, refiner, system, torch_dtype.
        Raises:
            ValueError: an option does not exist or is invalid, or the checkpoint has no mask tokenizer.
            RuntimeError: ms-swift's arguments were imported before the plugin was active.
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
        """Answer a question about an image, or a batch of questions.

        A bare expression ("the dog on the left") is inserted into the question template. A text that ends like a
        sentence (`.`, `?`, `!`) or has a placeholder is a question of its own and goes to the model unchanged.

        Args:
            image: path, URL, PIL image, or uint8 array (h, w) or (h, w, 3); a list of them for a batch.
            expression: what to segment, or a whole question; a list for a batch. One image with several expressions,
                or several images with one, are a batch as well.
            masks: one mask of the image's size for each `<mask>` in the question.
            boxes: x1, y1, x2, y2 in pixels for each `<bbox>` in the question.
            history: earlier turns about the same image: the result of the last turn, or messages that end with an
                answer (`masks` and `boxes` are then those of all turns).
        Returns:
            One result; for a batch a list with one per question.
        Raises:
            ValueError: an image cannot be read; a batch has unequal numbers of images and expressions, or comes with
                masks, boxes or history; or masks and boxes do not fit the placeholders.
        """
        has_one_image, has_one_text = not isinstance(image, list | tuple), isinstance(expression, str)
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
        texts = [expression] if isinstance(expression, str) else list(expression)
        if has_one_image and has_one_text:
            return self.answer([build_question_sample(self.question, images[0], texts[0], masks, boxes, history)])[0]
        if masks is not None or boxes is not None or history is not None:
            raise ValueError("masks, boxes or history given for a batch: expected rows for `answer`, or one at a time")
        if has_one_image:
            images *= len(texts)
        if has_one_text:
            texts *= len(images)
        if len(images) != len(texts):
            raise ValueError(f"expression has {len(texts)} entries: expected one for each of the {len(images)} images")
        return self.answer([build_question_sample(self.question, *pair) for pair in zip(images, texts, strict=True)])

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[SegmentationResult]:
        """Answer dataset rows with `images`, `messages` that end with a question and, if needed, `masks` and `objects`.

        Args:
            rows: as for `swift infer`; images and masks can also be objects instead of paths.
        Returns:
            One result per row, in order; masks have the size of the row's first image.
        Raises:
            ValueError: a row has no images or does not end with a question.
        """
        from .response_masks import RESPONSE_ATTRIBUTE

        prepared = []
        for row in rows:
            images = row.get("images") or []
            if not row.get("messages") or row["messages"][-1]["role"] != "user" or not images:
                raise ValueError("row: expected images, and messages that end with the user's")
            prepared.append({**row, "images": [load_image_source(image) for image in images]})
        responses = self.engine.infer(prepared, self.request_config, use_tqdm=False)
        box_side = NORMALIZED_SIDE if self.engine.template.norm_bbox == "norm1000" else None
        results = []
        for row, response in zip(prepared, responses, strict=True):
            message = response.choices[0].message
            image = row["images"][0]
            row["messages"] = [*row["messages"], {"role": "assistant", "content": message.content}]
            predicted = getattr(message, RESPONSE_ATTRIBUTE, [])
            size = image.height, image.width
            unknown_words = self._runtime.find_unknown_words(row["messages"])
            results.append(
                SegmentationResult.from_masks(message.content, predicted, size, image, row, box_side, unknown_words)
            )
        return results
