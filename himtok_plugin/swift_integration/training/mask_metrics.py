"""Mask metrics while training: what `--predict_with_generate` generates, scored as `himtok eval` scores a result file.

Contract: `MaskEvaluation` notes result rows as they are generated; `MaskMetrics`, registered with ms-swift as
`--eval_metric mask`, hands their scores to the log, to early stopping and to the choice of the best checkpoint, and a
few overlays to TensorBoard. Does not know how answers are generated.
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
from himtok_plugin.masks.drawing import comparison
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image

METRIC = "mask"
BEST = "cIoU"  # what the best checkpoint is chosen by, unless the user says otherwise
MAX_PICTURES = 4


def register_mask_metrics() -> None:
    """Make `--eval_metric mask` known to ms-swift; idempotent."""
    eval_metrics_map[METRIC] = MaskMetrics


class MaskEvaluation:
    """The result rows of one evaluation, as far as they are needed: scores of each, pictures of the first.

    Args:
        process: number of this process; only process 0 keeps pictures.
    """

    def __init__(self, process: int = 0):
        self.process = process
        self._scores: dict[Any, ResultScores] = {}
        self.pictures: list[np.ndarray] = []

    def add(self, row: dict[str, Any], key: tuple[str | None, int] | None) -> None:
        """Note a result row.

        Args:
            row: with `masks`, `images` and, where masks were asked for, `target_masks`.
            key: `sample_key` of the row. The last batch of several processes is filled up with rows that others have as
                well; those with a key count once.
        """
        root = os.environ.get("ROOT_IMAGE_DIR")
        scores = ResultScores(boundary=False, root=root)
        asked = scores.add(row) is not None
        self._scores[(self.process, len(self._scores)) if key is None else key] = scores
        if asked and self.process == 0 and len(self.pictures) < MAX_PICTURES and row.get("images"):
            predicted, true, _ = load_result_masks(row, root)
            self.pictures.append(self._picture(row, predicted.union(), true.union()))

    @staticmethod
    def _picture(row: dict[str, Any], prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        image = load_sample_image(row["images"][0])
        size = (image.height, image.width)
        # A row without any mask has no size.
        target, prediction = (mask if mask.shape == size else np.zeros(size, bool) for mask in (target, prediction))
        return np.asarray(comparison(image, target, prediction))

    def compute(self) -> dict[str, float]:
        """Scores over the rows of all processes; a share of no rows is left out. Starts anew."""
        everywhere = [self._scores]
        if dist.is_initialized():
            everywhere = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, self._scores)
        merged = ResultScores(boundary=False)
        for scores in {key: value for part in everywhere for key, value in part.items()}.values():
            merged.merge(scores)
        self._scores = {}
        return {name: value for name, value in merged.compute().items() if value is not None}


class MaskMetrics(EvalMetrics):
    """ms-swift's metric `mask`: what `ResultScores.compute` returns, of the generated answers."""

    def compute_metrics(self, eval_prediction) -> dict[str, float]:
        evaluation: MaskEvaluation = self.trainer.mask_evaluation
        scores = evaluation.compute()
        self._show(evaluation.pictures)
        evaluation.pictures = []
        return scores

    def _show(self, pictures: list[np.ndarray]) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            for i, picture in enumerate(pictures if writer is not None else []):
                writer.add_image(f"eval/mask_{i}", picture, self.trainer.state.global_step, dataformats="HWC")


def sample_key(row: dict[str, Any]) -> tuple[str | None, int] | None:
    """`MaskColumn.key` of a dataset row, None when unknown; read before its masks are replaced by predicted ones."""
    masks = row.get("masks")
    return None if masks is None else MaskColumn.parse(masks).key
