"""Rows with masks for `himtok tokenize`, the codes that are expected for them, and interrupted runs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_squares, tiny_model

from himtok_plugin.data.offline_codes import write_codes
from himtok_plugin.data.samples import load_squares
from himtok_plugin.masks import to_rle

SIDE = 16  # of the tiny tokenizer's squares
SIZE = (24, 20)


def trained(**fields):
    """A tiny mask tokenizer that is marked as trained: 4 mask tokens, 12 codes."""
    return tiny_model(codebook_ready=True, **fields)


def observed(model):
    encode, model.encoded = model.encode, []

    def counted(squares, candidates=1):
        model.encoded.append(len(squares))
        return encode(squares, candidates)

    model.encode = counted
    return model


def random_masks(count, seed=0):
    """`count` different masks of SIZE."""
    rng = np.random.default_rng(seed)
    squares = random_squares(count, side=SIZE[0], seed=seed).numpy()[:, :, : SIZE[1]]
    return [(square > 0) & (rng.random(SIZE) < 0.8) for square in squares]


def row_of(*masks, **columns):
    return {
        "messages": [
            {"role": "user", "content": "<image>Où?"},
            {"role": "assistant", "content": "<mask>" * len(masks)},
        ],
        "masks": list(masks),
        **columns,
    }


def write_rows(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save_mask(path, mask):
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return str(path)


def save_image(path, size=SIZE):
    Image.new("RGB", size[::-1]).save(path)
    return str(path)


def codes_in_training(model, *sources, **options):
    """The codes that a training step computes, from 8-bit squares; options are those of `encode`."""
    squares = torch.from_numpy(load_squares(dict(enumerate(sources)), SIDE, None, "row"))
    return model.encode(squares.float() / 255, **options).tolist()


def many_rows(count=100, seed=0):
    """Rows with no, one or two masks; some masks are in several rows."""
    masks = [to_rle(mask) for mask in random_masks(count, seed)]
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        kind = i % 5
        sources = [masks[j] for j in rng.integers(max(i - 9, 0), i + 1, size=kind % 3)]
        rows.append({"query": f"Question {i}"} if kind == 4 else row_of(*sources, number=i))
    return rows


def with_codes(rows, model):
    return [
        {**row, "mask_codes": codes_in_training(model, *row["masks"]) if row["masks"] else []}
        if "masks" in row
        else row
        for row in rows
    ]


class Stop(Exception):
    pass


def interrupt(source, out, model, after=50, **options):
    def report(finished, total, rejected):
        if finished >= after:
            raise Stop

    with pytest.raises(Stop):
        write_codes(source, out, model, batch_size=3, on_progress=report, **options)
