"""Mask metrics during training: answers of `--predict_with_generate`, scored as `himtok eval` scores a result file.

Contract: `MaskEvaluation` collects results as they are generated. `MaskMetrics`, ms-swift's `--eval_metric mask`,
passes their scores to the log, to early stopping and to the choice of the best checkpoint, and shows some masks in
TensorBoard.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch.distributed as dist
from swift.metrics import eval_metrics_map
from swift.metrics.base import EvalMetrics

from himtok_plugin.evaluation.results import load_result_masks
from himtok_plugin.evaluation.scoring import ResultScores
from himtok_plugin.masks.drawing import draw_comparison
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image

METRIC = "mask"
BEST = "cIoU"  # chooses the best checkpoint by default
MAX_PICTURES = 4


def register_mask_metrics() -> None:
    """Register `--eval_metric mask` with ms-swift; idempotent."""
    eval_metrics_map[METRIC] = MaskMetrics


class MaskEvaluation:
    """Scores of the results of one evaluation, and pictures of the first few.

    Args:
        process: index of this process; only process 0 keeps pictures.
    """

    def __init__(self, process: int = 0):
        self.process = process
        self._scores: dict[Any, ResultScores] = {}
        self.pictures: list[np.ndarray] = []

    def add(self, row: dict[str, Any], key: tuple[str | None, int] | None) -> None:
        """Score a result.

        Args:
            row: a result with `masks` and `images`, and with `target_masks` if the question asks for masks.
            key: `sample_key` of the row. ms-swift fills the last batch of several processes with rows that other
                processes have too; rows with the same key count once.
        """
        root = os.environ.get("ROOT_IMAGE_DIR")
        scores = ResultScores(boundary=False, root=root)
        has_masks = scores.add(row) is not None
        self._scores[(self.process, len(self._scores)) if key is None else key] = scores
        if has_masks and self.process == 0 and len(self.pictures) < MAX_PICTURES and row.get("images"):
            predicted, true, _ = load_result_masks(row, root)
            self.pictures.append(self._picture(row, predicted.union(), true.union()))

    @staticmethod
    def _picture(row: dict[str, Any], prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        image = load_sample_image(row["images"][0])
        size = (image.height, image.width)
        # Without any mask, a result has no size.
        target, prediction = (mask if mask.shape == size else np.zeros(size, bool) for mask in (target, prediction))
        return np.asarray(draw_comparison(image, target, prediction))

    def compute(self) -> dict[str, float]:
        """Return the scores of all processes' results and discard these; scores without any sample are left out."""
        parts: list[Any] = [self._scores]
        if dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._scores)
        merged = ResultScores(boundary=False)
        for scores in {key: value for part in parts for key, value in part.items()}.values():
            merged.merge(scores)
        self._scores = {}
        return {name: value for name, value in merged.compute().items() if value is not None}


class MaskMetrics(EvalMetrics):
    """ms-swift's metric `mask`: `ResultScores.compute` of the generated answers."""

    def compute_metrics(self, eval_prediction) -> dict[str, float]:
        evaluation: MaskEvaluation = self.trainer.mask_evaluation
        scores = evaluation.compute()
        self._show(evaluation.pictures)
        evaluation.pictures = []
        return scores

    def _show(self, pictures: list[np.ndarray]) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is None:
                continue
            for i, picture in enumerate(pictures):
                writer.add_image(f"eval/mask_{i}", picture, self.trainer.state.global_step, dataformats="HWC")


def sample_key(row: dict[str, Any]) -> tuple[str | None, int] | None:
    """Return `MaskColumn.key` of a dataset row, None if unknown. Call it before predicted masks replace the row's."""
    masks = row.get("masks")
    return None if masks is None else MaskColumn.parse(masks).key
