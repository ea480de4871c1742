"""De-tokenizer and frozen encoder compute, and are saved, like one mask tokenizer."""

import pytest
import torch
from tiny_models import random_squares, released_state, tiny_model

from himtok_plugin import MaskTokenizer
from himtok_plugin.swift_integration.model.detokenizer import load_detokenizer, save_complete_mask_tokenizer

TRAINED = ("decoder", "pixel_decoder")


@pytest.fixture
def whole(tmp_path):
    model = tiny_model(seed=3)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
    model.save_pretrained(tmp_path / "whole")
    return model


@pytest.fixture
def detokenizer(whole, tmp_path):
    return load_detokenizer(tmp_path / "whole")


def assert_same_weights(folder, expected):
    state = MaskTokenizer.from_pretrained(folder).state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == torch.float32 and torch.equal(state[name], value), name


def test_both_parts_encode_and_decode_like_the_mask_tokenizer(whole, detokenizer):
    squares = random_squares(5)
    codes = whole.encode(squares)
    assert torch.equal(detokenizer.encoding.encode(squares), codes)
    assert torch.equal(detokenizer.decode(codes), whole.decode(codes))
    probabilities = torch.rand(2, 4, 12)
    rows = whole.quantize.expected_code_vectors(probabilities)
    assert torch.equal(detokenizer.encoding.expected_code_vectors(probabilities), rows)


def test_codes_under_autocast_are_those_of_float32(whole, detokenizer):
    squares = random_squares(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cheap, codes = whole.encode(squares), detokenizer.encoding.encode(squares)
    assert torch.equal(codes, whole.encode(squares))
    assert not torch.equal(codes, cheap)  # otherwise the test proves nothing


def test_weights_in_several_files_are_read_like_those_in_one(whole, tmp_path):
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    detokenizer = load_detokenizer(tmp_path / "shards")
    squares = random_squares(3)
    assert torch.equal(detokenizer.encoding.encode(squares), whole.encode(squares))
    save_complete_mask_tokenizer(detokenizer, tmp_path / "saved", {})
    assert_same_weights(tmp_path / "saved", whole.state_dict())


def test_folder_without_weights_is_refused_with_its_name(whole, tmp_path):
    whole.config.save_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"empty' cannot be read: .*model\.safetensors"):
        load_detokenizer(tmp_path / "empty")


def test_encoder_is_loaded_with_the_first_mask(detokenizer):
    encoder = detokenizer.encoding
    assert not encoder.is_loaded and not any(name.startswith("encoder") for name, _ in detokenizer.named_parameters())
    encoder.encode(random_squares(1))
    assert encoder.is_loaded


def test_detokenizer_refuses_to_encode(detokenizer):
    with pytest.raises(RuntimeError, match="has no encoder"):
        detokenizer.encode(random_squares(1))


def test_released_weights_are_split_too(tmp_path):
    sizes = {"pixel_channels": 32, "pixel_groups": 32, "encoder_heads": 1, "decoder_heads": 1}
    model = tiny_model(latent_layout="legacy_reshape", **sizes)
    torch.save(released_state(model), tmp_path / "himtok.pth")
    detokenizer = load_detokenizer(tmp_path / "himtok.pth")
    squares = random_squares(2)
    assert torch.equal(detokenizer.encoding.encode(squares), model.encode(squares))
    save_complete_mask_tokenizer(detokenizer, tmp_path / "saved", {})
    assert_same_weights(tmp_path / "saved", model.state_dict())


def add_one_to_trained_weights(detokenizer):
    """Add 1 to the trained weights, in place of a training step."""
    for name in TRAINED:
        for parameter in getattr(detokenizer, name).requires_grad_(True).parameters():
            parameter.data += 1


def test_trained_weights_are_saved_with_the_frozen_ones(whole, detokenizer, tmp_path):
    detokenizer.requires_grad_(False)
    add_one_to_trained_weights(detokenizer)
    save_complete_mask_tokenizer(detokenizer, tmp_path / "saved", {})
    assert_same_weights(
        tmp_path / "saved", {n: v + 1 if n.startswith(TRAINED) else v for n, v in whole.state_dict().items()}
    )


def test_gathered_weights_are_saved_and_frozen_ones_stay_exact(whole, detokenizer, tmp_path):
    """DeepSpeed with ZeRO-3 leaves empty tensors in the model and gathers in half precision."""
    detokenizer.requires_grad_(False)
    add_one_to_trained_weights(detokenizer)
    gathered = {name: value.to(torch.bfloat16) for name, value in detokenizer.state_dict().items()}
    for parameter in detokenizer.parameters():
        parameter.data = torch.empty(0)
    save_complete_mask_tokenizer(detokenizer, tmp_path / "saved", gathered)
    expected = {n: gathered[n].float() if n.startswith(TRAINED) else v for n, v in whole.state_dict().items()}
    assert_same_weights(tmp_path / "saved", expected)


def test_frozen_and_sharded_detokenizer_is_saved_as_it_was_loaded(whole, detokenizer, tmp_path):
    """The gathered weights of an adapter's run have no frozen weights."""
    for parameter in detokenizer.requires_grad_(False).parameters():
        parameter.data = torch.empty(0)
    save_complete_mask_tokenizer(detokenizer, tmp_path / "saved", {})
    assert_same_weights(tmp_path / "saved", whole.state_dict())


def test_trained_weights_that_were_not_gathered_are_never_replaced_by_old_ones(detokenizer, tmp_path):
    detokenizer.requires_grad_(False)
    add_one_to_trained_weights(detokenizer)
    gathered = {n: v for n, v in detokenizer.state_dict().items() if not n.startswith("pixel_decoder")}
    with pytest.raises(RuntimeError, match="pixel_decoder.* were not gathered"):
        save_complete_mask_tokenizer(detokenizer, tmp_path / "saved", gathered)


def test_trained_weights_that_are_still_sharded_are_never_saved(detokenizer, tmp_path):
    """As in a model in which DeepSpeed has left empty tensors, when nothing was gathered."""
    detokenizer.requires_grad_(False)
    add_one_to_trained_weights(detokenizer)
    for parameter in detokenizer.decoder.parameters():
        parameter.data = torch.empty(0)
    with pytest.raises(RuntimeError, match="mask tokenizer: decoder.* were not gathered"):
        save_complete_mask_tokenizer(detokenizer, tmp_path / "saved", {})
