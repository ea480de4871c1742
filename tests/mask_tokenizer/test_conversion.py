"""conversion.py: sizes off shapes, wrappers, and refusals."""

import os
import pickle

import huggingface_hub
import pytest
import torch
from tiny_models import random_squares, released_state, tiny_model

from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.conversion import config_from_shapes, load_released, strip_wrappers

# As released: heads of 64 and groups of 32 cannot be read off the shapes, so the model has them too.
RELEASED_LIKE = {
    "latent_layout": "legacy_reshape",
    "encoder_width": 128,
    "encoder_heads": 2,
    "decoder_width": 64,
    "decoder_heads": 1,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "pixel_hidden_width": 24,
    "pixel_channels": 32,
    "pixel_groups": 32,
    "pixel_channel_multipliers": [1, 2, 4],
    "pixel_res_blocks": 2,
    "output_channels": 3,
}


@pytest.fixture
def released():
    return tiny_model(**RELEASED_LIKE)


def save(state, folder):
    path = folder / "himtok.pth"
    torch.save(state, path)
    return path


def test_every_size_is_read_off_the_shapes(released):
    shapes = {key: tuple(value.shape) for key, value in released.state_dict().items()}
    config = config_from_shapes(shapes)
    expected, found = released.config.to_dict(), config.to_dict()
    assert found.pop("codebook_ready") is True and expected.pop("codebook_ready") is False
    for noise in ("architectures", "dtype"):
        expected.pop(noise, None), found.pop(noise, None)
    assert found == expected


def wrapped(state):
    return {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}


def with_refiner(state):
    return {**state, "sam.mask.weight": torch.zeros(2)}


@pytest.mark.parametrize("wrap", [dict, wrapped, with_refiner, lambda state: {"model": state}])
def test_wrappers_prefixes_the_stored_mask_and_the_refiner_are_stripped(released, tmp_path, wrap):
    loaded = load_released(save(wrap(released_state(released)), tmp_path))
    assert loaded.state_dict().keys() == released.state_dict().keys() and not loaded.training
    squares = random_squares(3)
    assert torch.equal(loaded.encode(squares), released.encode(squares))
    assert torch.equal(loaded(squares), released(squares))


@pytest.mark.parametrize("name", [".", "himtok.pth"])
def test_released_weights_load_from_their_folder_and_as_a_file(released, tmp_path, name):
    save(released_state(released), tmp_path)
    assert torch.equal(MaskTokenizer.from_pretrained(tmp_path / name)(random_squares(2)), released(random_squares(2)))


def test_a_hub_id_that_holds_only_released_weights_is_converted(released, monkeypatch, tmp_path):
    save(released_state(released), tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    assert torch.equal(MaskTokenizer.from_pretrained("someone/it")(random_squares(2)), released(random_squares(2)))


def test_weights_stored_in_half_precision_load_as_float32(released, tmp_path):
    loaded = load_released(save({k: v.half() for k, v in released_state(released).items()}, tmp_path))
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_on_the_fly_in_bfloat16_the_quantizer_stays_float32(released, tmp_path, dtype):
    loaded = MaskTokenizer.from_pretrained(save(released_state(released), tmp_path), dtype=dtype)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.quantize.codebook(), released.quantize.codebook())


def test_a_converted_folder_is_the_model_converted_on_the_fly(released, tmp_path):
    path = save(released_state(released), tmp_path)
    load_released(path).save_pretrained(tmp_path / "out")
    again = MaskTokenizer.from_pretrained(tmp_path / "out")
    assert again.config.latent_layout == "legacy_reshape" and again.config.codebook_ready
    assert torch.equal(again(random_squares(2)), MaskTokenizer.from_pretrained(path)(random_squares(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.transformer.1.ln_1.bias"), r"missing keys \['decoder.transformer.1.ln_1.bias'\]"),
        (lambda s: s.update(stray=torch.zeros(1)), r"unknown keys \['stray'\]"),
        (
            lambda s: s.update({"decoder.mask_token": torch.zeros(1, 1, 9)}),
            r"wrong shapes \['decoder.mask_token \(1, 1, 9\) instead of \(1, 1, 64\)'\]",
        ),
        (lambda s: s.pop("quantize.embedding.weight"), "no key 'quantize.embedding.weight'"),
        (lambda s: s.update(latent_tokens=torch.zeros(4)), r"latent_tokens has shape \(4,\), expected 2 dimensions"),
        (lambda s: s.update(latent_tokens=torch.zeros(0, 128)), r"latent_tokens has shape \(0, 128\)"),
        (lambda s: s.update({"encoder.positional_embedding": torch.zeros(16, 128)}), "15 patches, expected a square"),
        (lambda s: s.update(note="hello"), r"entries that are no tensors: \['note'\]"),
    ],
)
def test_what_does_not_fit_is_named(released, tmp_path, change, message):
    state = released_state(released)
    change(state)
    with pytest.raises(ValueError, match=message):
        load_released(save(state, tmp_path))


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds a list, expected a dictionary of tensors"):
        load_released(save([torch.zeros(1)], tmp_path))
    with pytest.raises(ValueError, match="no key '.*', so this is no HiMTok mask tokenizer"):
        load_released(save({"model": {"weight": torch.zeros(1)}}, tmp_path))
    with pytest.raises(ValueError, match="found none"):
        load_released(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text file\n", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_text_file_named_pth_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "himtok.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="himtok.pth: not a weights file of plain tensors") as error:
        load_released(path)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_a_truncated_file_is_refused(released, tmp_path):
    path = save(released_state(released), tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a weights file of plain tensors"):
        load_released(path)


class Malicious:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):  # what pickle calls when it loads
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(released, tmp_path, write):
    path, witness = tmp_path / "himtok.pth", tmp_path / "it_ran"
    write({**released_state(released), "extra": Malicious(witness)}, path)
    with pytest.raises(ValueError, match=r"not a weights file of plain tensors \(it would call "):
        MaskTokenizer.from_pretrained(path)
    assert not witness.exists()


def test_a_safetensors_file_without_its_config_is_refused(released, tmp_path):
    released.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected the folder that holds it"):
        MaskTokenizer.from_pretrained(tmp_path / "model.safetensors")


def test_strip_wrappers_leaves_a_plain_state_alone(released):
    state = released.state_dict()
    assert strip_wrappers(state) == state
