"""Parity with the authors' released code, on the numbers in `shared/parity` (skipped where that folder is absent).

The bar: codes equal wherever best and second best are further apart than 1e-4, everything else within 1e-4. The same
facts are checked by hand-computed cases in the tests of each module, which always run.
"""

import importlib.util
import json

import numpy as np
import PIL
import pytest
import torch
from paths import PARITY

from himtok_plugin.hierarchical_loss import (
    HierarchicalMaskLoss,
    coarse_target,
    code_probabilities,
    mask_bce,
    mask_dice,
)
from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.released_weights import config_from_shapes
from himtok_plugin.masks import load_mask, to_square

FOLDER = PARITY
pytestmark = pytest.mark.skipif(not (FOLDER / "parity_small.npz").is_file(), reason=f"no parity numbers in {FOLDER}")

TOLERANCE = 1e-4
PILLOW = int(PIL.__version__.partition(".")[0])
LEVELS = (3, 9, 27)
STORED_CONSTANT = "encoder.attn_mask"
# gather_labels: the start token and the first code of a vocabulary of 1300
START_ID, FIRST_CODE_ID, NUM_TOKENS, CODEBOOK_SIZE = 1100, 200, 32, 1024


def close(found, expected):
    return np.abs(np.asarray(found) - expected).max() < TOLERANCE


def shapes(size):
    stored = json.loads((FOLDER / f"shapes_{size}.json").read_text())
    return {key: tuple(shape) for key, (shape, _) in stored.items()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def numbers():
    with np.load(FOLDER / "parity_small.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The small model, through a file in the released layout, wrapper and prefixes included."""
    spec = importlib.util.spec_from_file_location("parity_weights", FOLDER / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    state = {
        f"module.{key}": torch.zeros(shape, dtype=torch.bool)
        if key == STORED_CONSTANT
        else torch.from_numpy(weights.tensor(key, shape))
        for key, shape in shapes("small").items()
    }
    path = tmp_path_factory.mktemp("released") / "himtok.pth"
    torch.save({"model": state}, path)
    return MaskTokenizer.from_released(path)


@pytest.fixture(scope="module")
def squares(numbers):
    # The numbers come from Pillow 13. It resizes tall masks first in height, earlier releases do so once transposed.
    masks = [numbers[f"mask_{i}"] for i in range(5)]
    tall = [PILLOW < 13 and mask.shape[0] > 1.4 * mask.shape[1] for mask in masks]
    squares = [to_square(mask.T).T if turn else to_square(mask) for mask, turn in zip(masks, tall, strict=True)]
    return torch.stack([torch.from_numpy(square.copy()) for square in squares])


@pytest.fixture(scope="module")
def predicted(numbers):
    """(3, 256, 256): the stored decoded probabilities, every 4th pixel repeated."""
    return torch.from_numpy(numbers["decode_probabilities"]).repeat_interleave(4, 1).repeat_interleave(4, 2)


def every_fourth(probabilities):
    return probabilities[:, ::4, ::4].numpy()


def test_the_square_of_a_loaded_mask_is_that_of_the_raw_one(numbers):
    raw = numbers["mask_3"]
    assert np.array_equal(to_square(load_mask(raw)), to_square(raw))


@torch.no_grad()
def test_latents_and_codes(model, numbers, squares):
    assert close(model.encode_to_latents(squares), numbers["latents"])
    clear = numbers["code_margin"] > TOLERANCE
    assert clear.mean() > 0.9
    assert np.array_equal(model.encode(squares).numpy()[clear], numbers["codes"][clear])


@torch.no_grad()
def test_decoded_codes_with_the_codebook_as_it_is_and_normalised(model, numbers, monkeypatch):
    codes = torch.from_numpy(numbers["codes"])
    assert close(every_fourth(model.decode(codes)), numbers["decode_codes"])
    monkeypatch.setattr(model.quantize, "normalize_codebook", True)
    assert close(every_fourth(model.decode(codes[:2])), numbers["decode_codes_normalized"][:2])


@torch.no_grad()
def test_decoded_probabilities(model, numbers):
    probabilities = code_probabilities(torch.from_numpy(numbers["code_logits"]))
    assert close(every_fourth(model.decode_probabilities(probabilities)), numbers["decode_probabilities"])


@torch.no_grad()
@pytest.mark.parametrize(("n", "which"), [(1, [0]), (4, [1]), (8, [2]), (16, [3, 4])])
def test_zeroed_and_dropped_prefixes(model, numbers, n, which):
    """One or two masks per length: decoding 256x256 takes a second each."""
    codes = torch.from_numpy(numbers["codes"][which])
    assert close(every_fourth(model.decode(codes[:, :n])), numbers[f"decode_prefix_dropped_{n}"][which])
    zeroed = torch.nn.functional.one_hot(codes, CODEBOOK_SIZE).float()
    zeroed[:, n:] = 0
    assert close(every_fourth(model.decode_probabilities(zeroed)), numbers[f"decode_prefix_zeroed_{n}"][which])


def test_loss_terms_of_the_full_prediction(numbers, squares, predicted):
    assert close(mask_bce(predicted, squares[:3]), numbers["loss_bce"])
    assert close(mask_dice(predicted, squares[:3]), numbers["loss_dice"])


@pytest.mark.parametrize("n", LEVELS)
def test_coarse_targets_and_their_loss_terms(numbers, squares, predicted, n):
    coarse = coarse_target(squares[:3], n)
    assert close(every_fourth(coarse), numbers[f"coarse_target_{n}"])
    assert close(mask_bce(predicted, coarse), numbers[f"coarse_bce_{n}"])
    assert close(mask_dice(predicted, coarse), numbers[f"coarse_dice_{n}"])


def test_loss_terms_over_three_levels_concatenated(numbers, squares, predicted):
    coarse = torch.cat([coarse_target(squares[:3], n) for n in LEVELS])
    repeated = predicted.repeat(len(LEVELS), 1, 1)
    assert close(mask_bce(repeated, coarse), numbers["coarse_all_bce"])
    assert close(mask_dice(repeated, coarse), numbers["coarse_all_dice"])


class StoredPrediction:
    """A tokenizer whose every decoding is the stored prediction: leaves the loss alone to be checked."""

    def __init__(self, config, prediction):
        self.config, self.prediction = config, prediction

    def decode_probabilities(self, probabilities):
        return self.prediction.repeat(len(probabilities) // len(self.prediction), 1, 1)


def test_the_hierarchical_loss_is_the_sum_of_the_stored_levels(model, numbers, squares, predicted):
    stored = StoredPrediction(model.config, predicted)
    losses = HierarchicalMaskLoss()(
        stored, torch.zeros(3, NUM_TOKENS, CODEBOOK_SIZE), squares[:3], levels=torch.tensor(LEVELS)
    )
    expected = sum(numbers[f"coarse_bce_{n}"] + 0.25 * numbers[f"coarse_dice_{n}"] for n in LEVELS)
    assert close(losses.hierarchical, expected)
    assert close(losses.bce, numbers["loss_bce"]) and close(losses.dice, numbers["loss_dice"])


def test_code_probabilities_gathered_from_shifted_logits(numbers):
    """Row i of shifted logits predicts label i; the codes are the 32 labels behind the start token."""
    logits = np.random.RandomState(int(numbers["gather_seed"])).standard_normal((2, 60, 1300)).astype(np.float32)
    first = int(np.flatnonzero(numbers["gather_labels"][0] == START_ID)[0]) + 1
    columns = logits[0, first : first + NUM_TOKENS, FIRST_CODE_ID : FIRST_CODE_ID + CODEBOOK_SIZE]
    found = code_probabilities(torch.from_numpy(columns)).numpy()
    assert close(found, numbers["gather_probs"])
    assert close(found.sum(-1), numbers["gather_probs_sum"])


def test_the_large_layout_has_exactly_the_released_keys_and_shapes():
    released = {key: shape for key, shape in shapes("large").items() if key != STORED_CONSTANT}
    config = config_from_shapes(released)
    with torch.device("meta"):
        large = MaskTokenizer(config)
    assert {key: tuple(value.shape) for key, value in large.state_dict().items()} == released
    assert (config.encoder_heads, config.decoder_heads, config.image_size) == (16, 16, 256)
