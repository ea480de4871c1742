"""Reconstruction scores per number of tokens."""

import numpy as np
from tiny_models import tiny_model

from himtok_plugin.reconstruction import reconstruction_scores


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
    import torch

    square = torch.from_numpy(mask.astype(np.float32))[None]
    restored = (model.decode(model.encode(square))[0] >= 0.5).detach().numpy()
    union = np.logical_or(restored, mask).sum()
    assert reconstruction_scores(model, [mask])[4]["gIoU"] == np.logical_and(restored, mask).sum() / union
