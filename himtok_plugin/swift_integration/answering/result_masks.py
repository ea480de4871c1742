"""Masks in the results of ms-swift's inference pipeline.

Contract: `attach_masks` puts masks at the responses of ms-swift's own engine, from the code probabilities that it has
just recorded; `write_masks` puts them into a result row (and as pictures into `--mask_dir`), from the response or, for
any other engine, from its text. All masks come from `prediction.py`. Does not know how rows are read and written.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from himtok_plugin.evaluation.scoring import read_results
from himtok_plugin.evaluation.truths import ASKS_FOR_MASKS, answer_masks
from himtok_plugin.lmm.token_logprobs import code_probabilities_of_logprobs
from himtok_plugin.mask_text import text_to_codes
from himtok_plugin.masks.drawing import overlay
from himtok_plugin.prediction.predictor import Answer, PredictedMask
from himtok_plugin.prediction.refinement import SAM_KINDS
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.samples.dataset import MaskColumn
from himtok_plugin.swift_integration.samples.template import shown_image_size

RESPONSE_ATTRIBUTE = "himtok_masks"


def runtime_of(template) -> MaskRuntime | None:
    """The run's masks; None for a model that has none (the mask tokenizer itself, a text-only one)."""
    return getattr(template.tokenizer, "himtok", None)


def attach_masks(runtime: MaskRuntime, template_inputs: list, responses: list) -> None:
    """Give every choice of every response its masks, all decoded together.

    Args:
        template_inputs: ms-swift's inputs of each request, as `MaskTemplateMixin` has left them.
        responses: ms-swift's responses in the same order; several choices stand behind each other in the batch.
    """
    choices, answers = [], []
    for inputs, response in zip(template_inputs, responses, strict=True):
        for choice in response.choices:
            sequence = len(choices)
            choices.append(choice)
            if inputs.himtok_size is None:
                answers.append(None)
                continue
            text = choice.message.content
            probabilities = runtime.generation.probabilities(sequence, _codes(runtime, text))
            answers.append(Answer(text, inputs.himtok_size, probabilities))
    predicted = iter(runtime.predict([answer for answer in answers if answer is not None]))
    for choice, answer in zip(choices, answers, strict=True):
        setattr(choice.message, RESPONSE_ATTRIBUTE, next(predicted) if answer is not None else [])


def masks_of_text(
    runtime: MaskRuntime, text: str, row: dict[str, Any], logprobs: dict[str, Any] | None = None
) -> list[PredictedMask]:
    """Masks of one answer that came as text.

    Code probabilities are those recorded, if the last generation was this answer, else those of `logprobs`, as servers
    return them.
    """
    images = row.get("images") or []
    if not images:
        return []
    codes = _codes(runtime, text)
    probabilities = runtime.generation.probabilities(0, codes)
    if probabilities is None and codes and logprobs:
        listed, found = code_probabilities_of_logprobs(logprobs.get("content") or (), runtime.codebook_size)
        probabilities = found if listed == codes else None  # else the text was changed on its way
    masks = runtime.predict([Answer(text, shown_image_size(images[0]), probabilities)])[0]
    if masks and runtime.settings.refiner in SAM_KINDS:
        masks = refined_by_model(runtime, load_row_image(images[0]), masks)
    return masks


def refined_by_model(runtime: MaskRuntime, image: Image.Image, masks: list[PredictedMask]) -> list[PredictedMask]:
    """The same masks after `--refiner sam|sam2|sam3`; codes and scores stay those of the answer."""
    refined = runtime.refiner()(image, [mask.mask for mask in masks], [mask.square for mask in masks])
    return [replace(mask, mask=new, square=None) for mask, new in zip(masks, refined, strict=True)]


def _codes(runtime: MaskRuntime, text: str) -> list[int]:
    spans = text_to_codes(text, runtime.codebook_size, runtime.num_mask_tokens)
    return [code for span in spans for code in span.codes]


def write_masks(row: dict[str, Any], masks: list[PredictedMask]) -> None:
    """Put predicted masks into a result row; the row's own masks of the answer, the truth, move to `target_masks`.

    A row that asks for no mask gets no `target_masks`, which keeps its answer out of masks' scores. The row has its
    `EVALUATION_COLUMNS` again, its `dataset`, and its number in that as `row`.
    """
    truth = row.pop("masks", None)
    if truth is not None:
        column = MaskColumn.parse(truth)
        true = answer_masks(column.masks, row["messages"], column.further.get(ASKS_FOR_MASKS))
        known = {"row": column.row, "dataset": column.dataset, "target_masks": true}
        row.update(column.further, **{name: value for name, value in known.items() if value is not None})
    row["masks"] = [mask.to_dict() for mask in masks]


def without_results(rows: Any, result_path: str | None) -> Any:
    """The rows of a dataset that have no result yet, by their datasets' names and their numbers.

    Args:
        rows: ms-swift's preprocessed dataset, perhaps of several files.
        result_path: the result file, which may not be there yet.
    Raises:
        ValueError: a result or a row without a number, as rows without masks are, or a result of another dataset.
    """
    if not result_path or not os.path.isfile(result_path):
        return rows
    keys = []
    for i in range(len(rows)):
        masks = rows[i].get("masks")
        key = None if masks is None else MaskColumn.parse(masks).key
        if key is None:
            raise ValueError(f"--resume_result: row {i + 1} of the dataset: got no masks, expected rows with masks")
        keys.append(key)
    asked, done = {dataset for dataset, _ in keys}, set()
    for line, row in read_results(result_path):
        name = f"--resume_result: {result_path}: row {line}"
        if not isinstance(row.get("row"), int):
            raise ValueError(f"{name} has no number, expected results of rows with masks")
        dataset = row.get("dataset")
        if dataset is None and len(asked) == 1:  # an older result, or one of a server
            (dataset,) = asked
        if dataset not in asked:
            # A file of another name may be the same one, whose rows would all be answered twice.
            raise ValueError(f"{name}: dataset: got {dataset!r}, expected one of {sorted(map(str, asked))}")
        done.add((dataset, row["row"]))
    return rows.select([i for i, key in enumerate(keys) if key not in done])


class MaskPictures:
    """Writes masks and overlays of answers into a folder, numbered in order of appearance.

    Numbers go on after those of pictures that are there: of an earlier run, which `--resume_result` goes on with, or of
    an earlier dialogue.
    """

    def __init__(self, folder: str, rank: int = -1):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prefix = f"rank{rank}_" if rank > 0 else ""
        own = re.compile(rf"{self.prefix}(\d+)_(?:mask\d+|overlay)\.png")
        found = [int(match[1]) for path in self.folder.iterdir() if (match := own.fullmatch(path.name))]
        self._number = max(found, default=-1) + 1

    def write(self, row: dict[str, Any], masks: list[PredictedMask]) -> list[str]:
        """PNG per mask (0 or 255) and one overlay; returns their paths, none for an answer without a mask."""
        number, self._number = self._number, self._number + 1
        paths = []
        for i, mask in enumerate(masks):
            path = self.folder / f"{self.prefix}{number:05d}_mask{i}.png"
            Image.fromarray(mask.mask).save(path)
            paths.append(os.fspath(path))
        if masks:
            path = self.folder / f"{self.prefix}{number:05d}_overlay.png"
            overlay(load_row_image(row["images"][0]), [mask.mask for mask in masks]).save(path)
            paths.append(os.fspath(path))
        return paths


def load_row_image(image: Any) -> Image.Image:
    """An image as result rows hold it."""
    from swift.template.vision_utils import load_image

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    return load_image(image)
