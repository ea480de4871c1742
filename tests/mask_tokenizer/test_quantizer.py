"""quantizer.py with a codebook written by hand."""

import pytest
import torch
from tiny_models import tiny_config

from himtok_plugin.mask_tokenizer.quantizer import Quantizer

# Four directions of very different lengths; the projection doubles them.
EMBEDDING = torch.tensor([[5.0, 0, 0], [0, 0.1, 0], [0, 0, 1], [-2, 0, 0]])


def quantizer(**fields):
    made = Quantizer(tiny_config(codebook_size=4, **fields))
    with torch.no_grad():
        made.embedding.weight.copy_(EMBEDDING)
        made.embedding_proj.weight.copy_(2 * torch.eye(3))
    return made


def test_the_codebook_is_embedding_times_projection():
    made = quantizer()
    with torch.no_grad():
        made.embedding_proj.weight.copy_(torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 3]]))
    assert made.codebook().tolist() == [[0, 5, 0], [pytest.approx(0.1), 0, 0], [0, 0, 3], [0, -2, 0]]


def test_the_nearest_code_is_nearest_in_direction_not_in_space():
    # (0.4, 0.3, 0) is closest to vector 1, and its direction is closest to that of vector 0.
    latents = torch.tensor([[[0.4, 0.3, 0], [0, 100, 1], [0, 1e-3, 1e-2], [-1, 0.5, 0.5]]])
    assert quantizer().nearest_codes(latents).tolist() == [[0, 1, 2, 3]]


def test_several_nearest_codes_come_nearest_first():
    latents = torch.tensor([[[0.4, 0.3, 0.1], [-1, 0.5, 0.2]]])
    made = quantizer()
    assert made.nearest_codes(latents, 3).tolist() == [[[0, 1, 2], [3, 1, 2]]]
    assert torch.equal(made.nearest_codes(latents, 1)[..., 0], made.nearest_codes(latents))


def test_nearest_codes_do_not_depend_on_lengths():
    latents = torch.randn(3, 4, 3)
    made = quantizer()
    assert torch.equal(made.nearest_codes(latents), made.nearest_codes(latents * torch.rand(3, 4, 1) * 50))


def test_code_vectors_are_those_of_the_codebook():
    assert torch.equal(quantizer().code_vectors(torch.tensor([[1, 0]])), 2 * EMBEDDING[[1, 0]][None])


def test_normalize_codebook_feeds_directions_to_the_decoder_and_leaves_encoding_alone():
    plain, unit = quantizer(), quantizer(normalize_codebook=True)
    assert torch.allclose(
        unit.code_vectors(torch.tensor([[0, 1, 3]])), torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-1, 0, 0]]])
    )
    latents = torch.randn(2, 4, 3)
    assert torch.equal(plain.nearest_codes(latents), unit.nearest_codes(latents))
    assert torch.allclose(unit.expected_code_vectors(torch.full((1, 1, 4), 0.25)), torch.tensor([[[0.0, 0.25, 0.25]]]))


def test_expected_code_vectors_are_means_and_zero_for_zero_probabilities():
    probabilities = torch.tensor([[[0.5, 0, 0, 0.5], [0, 0, 0, 0], [0, 0, 1, 0]]])
    expected = torch.tensor([[[3.0, 0, 0], [0, 0, 0], [0, 0, 2]]])
    assert torch.allclose(quantizer().expected_code_vectors(probabilities), expected)


def test_one_hot_probabilities_give_the_code_vectors():
    made, codes = quantizer(), torch.tensor([[3, 1, 2]])
    one_hot = torch.nn.functional.one_hot(codes, 4).float()
    assert torch.allclose(made.expected_code_vectors(one_hot), made.code_vectors(codes))


def test_everything_is_computed_in_float32_under_autocast_and_from_bfloat16():
    made = quantizer()
    latents = torch.randn(5, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.codebook().dtype == torch.float32
        assert torch.equal(made.nearest_codes(latents), quantizer().nearest_codes(latents))
        assert made.expected_code_vectors(torch.rand(1, 2, 4)).dtype == torch.float32
    assert made.code_vectors(torch.tensor([[0]])).dtype == torch.float32
    assert made.to(torch.bfloat16).codebook().dtype == torch.float32


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float16),
        lambda module: module.bfloat16(),
        lambda module: module.half(),
        lambda module: module.double(),
    ],
)
def test_casting_a_parent_module_does_not_change_the_codebook(cast):
    made = quantizer()
    with torch.no_grad():
        made.embedding.weight.mul_(1 / 3)
    made.embedding.weight.grad = torch.full((4, 3), 1 / 3)
    before = made.codebook()
    around = cast(torch.nn.Sequential(torch.nn.Linear(2, 2), made))
    assert around[0].weight.dtype != torch.float32
    assert {p.dtype for p in made.parameters()} == {torch.float32} and torch.equal(made.codebook(), before)
    assert torch.equal(made.embedding.weight.grad, torch.full((4, 3), 1 / 3))


def test_the_codebook_moves_between_devices_and_is_assigned_like_any_weights():
    with torch.device("meta"):
        made = Quantizer(tiny_config(codebook_size=4))
    assert made.to(torch.bfloat16).embedding.weight.is_meta
    made.load_state_dict(quantizer().state_dict(), assign=True)
    assert torch.equal(made.codebook(), quantizer().codebook())
    assert made.to("meta").embedding.weight.is_meta
    assert made.to_empty(device="cpu").embedding.weight.device.type == "cpu"
    made = made.to(device="meta", dtype=torch.half).to_empty(device="cpu")
    assert made.embedding.weight.dtype == torch.float32


def test_code_vectors_that_are_set_are_in_the_codebook_with_any_projection():
    made = quantizer()
    with torch.no_grad():
        made.embedding_proj.weight.copy_(torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 3, 1]]))
    before, vectors = made.codebook().detach(), torch.randn(2, 3)
    made.set_code_vectors(vectors, torch.tensor([3, 1]))
    assert torch.allclose(made.codebook()[[3, 1]], vectors, atol=1e-5)
    assert torch.allclose(made.codebook()[[0, 2]], before[[0, 2]])
    everything = torch.randn(4, 3)
    made.set_code_vectors(everything)
    assert torch.allclose(made.codebook(), everything, atol=1e-5)
