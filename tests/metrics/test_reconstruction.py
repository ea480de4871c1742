"""Reconstruction scores per number of tokens."""

import numpy as np
import torch
from tiny_models import tiny_model

from himtok_plugin.metrics.reconstruction import ReconstructionMetrics, reconstruction_scores


def test_scores_powers_of_two_and_full_length_over_masks_of_any_size():
    masks = [np.ones((5, 9), bool), np.zeros((12, 4), bool), np.eye(7, dtype=bool)]
    scores = reconstruction_scores(tiny_model(num_mask_tokens=3), masks)
    assert list(scores) == [1, 2, 3]
    assert all(score["samples"] == 3 for score in scores.values())
    assert "boundary_F" in scores[3] and "boundary_F" not in scores[1]


def test_full_length_agrees_with_encode_and_decode():
    model = tiny_model()
    mask = np.zeros((16, 16), bool)
    mask[4:12, 2:9] = True
    square = torch.from_numpy(mask.astype(np.float32))[None]
    restored = (model.decode(model.encode(square))[0] >= 0.5).detach().numpy()
    union = np.logical_or(restored, mask).sum()
    assert reconstruction_scores(model, [mask])[4]["gIoU"] == np.logical_and(restored, mask).sum() / union


def test_merged_metrics_are_those_of_all_masks():
    model, masks = tiny_model(), [np.ones((5, 9), bool), np.eye(7, dtype=bool), np.zeros((12, 4), bool)]
    codes = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
    parts = [ReconstructionMetrics(4) for _ in range(3)]
    for part, chosen in zip(parts, (slice(3), slice(1), slice(1, 3)), strict=True):
        part.update(model, codes[chosen], masks[chosen])
    merged = parts[1].merge(parts[2])
    assert len(merged) == len(parts[0]) == 3 and merged.compute() == parts[0].compute()
