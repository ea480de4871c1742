"""released_weights.py: sizes derived from shapes, wrappers, and what is rejected."""

import os
import pickle
from fnmatch import fnmatch

import huggingface_hub
import pytest
import torch
from tiny_models import random_squares, released_state, tiny_model

from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.released_weights import config_from_shapes, strip_wrappers

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
    loaded = MaskTokenizer.from_released(save(wrap(released_state(released)), tmp_path))
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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose one repository is the folder `repository`; returns what has been fetched of it."""
    fetched = tmp_path / "fetched"

    def download(hub_id, allow_patterns, **options):
        assert hub_id == "someone/it" and options == {"revision": "v2"}
        for file in (tmp_path / "repository").rglob("*"):
            name = str(file.relative_to(tmp_path / "repository"))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (fetched / name).parent.mkdir(parents=True, exist_ok=True)
                (fetched / name).write_bytes(file.read_bytes())
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched


@pytest.mark.parametrize("place", ["", "mask_tokenizer", "parts/masks"])
def test_only_the_files_of_the_mask_tokenizer_are_downloaded_from_a_hub(released, hub, tmp_path, place):
    repository = tmp_path / "repository"
    released.save_pretrained(repository / place, max_shard_size="100KB")
    shards = {path.name for path in (repository / place).glob("model-0*.safetensors")}
    assert len(shards) > 1
    if place:
        (repository / "config.json").write_text('{"model_type": "internvl"}')
        for name in ("model-00001-of-00009.safetensors", "model.safetensors", "model.safetensors.index.json"):
            (repository / name).write_text("not wanted")
    loaded = MaskTokenizer.from_pretrained("someone/it", revision="v2", subfolder=place)
    assert torch.equal(loaded(random_squares(2)), released(random_squares(2)))
    fetched = {str(path.relative_to(hub)) for path in hub.rglob("*") if path.is_file()}
    own = {"config.json", "model.safetensors.index.json", *shards}
    inside = {f"{place}/{name}" for name in own} if place else own
    assert inside <= fetched <= inside | {"config.json"}


def test_beside_an_lmm_on_a_hub_the_tokenizer_is_found_without_being_named(released, hub, tmp_path):
    released.save_pretrained(tmp_path / "repository" / "mask_tokenizer")
    (tmp_path / "repository" / "config.json").write_text('{"model_type": "internvl"}')
    (tmp_path / "repository" / "model.safetensors").write_text("not wanted")
    loaded = MaskTokenizer.from_pretrained("someone/it", revision="v2")
    assert torch.equal(loaded(random_squares(2)), released(random_squares(2)))
    assert not (hub / "model.safetensors").exists()


def test_fields_dtype_and_device_apply_to_released_weights(released, tmp_path):
    path = save(released_state(released), tmp_path)
    loaded = MaskTokenizer.from_pretrained(
        path, normalize_codebook=True, decoder_heads=2, dtype="float16", device_map="auto", token=None
    )
    assert loaded.config.normalize_codebook and loaded.quantize.normalize_codebook
    assert loaded.decoder.transformer[0].attn.heads == 2 and loaded.config.codebook_ready
    assert loaded.dtype == torch.float16 and loaded.quantize.embedding.weight.dtype == torch.float32
    for device in ("meta", {"": "meta"}, torch.device("meta")):
        assert MaskTokenizer.from_pretrained(path, device_map=device).device.type == "meta"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"colour": 3, "attn_implementation": "sdpa"}, r"keywords \['attn_implementation', 'colour'\]: expected dtype"),
        ({"normalize_codebook": "yes"}, "normalize_codebook='yes': expected true or false"),
        ({"num_mask_tokens": 5}, r"wrong shapes .*latent_tokens \(4, 128\) instead of \(5, 128\)"),
        ({"encoder_layers": 2}, r"missing keys \['encoder.transformer.1"),
        ({"dtype": "float17"}, "dtype='float17': expected a floating dtype"),
        ({"dtype": torch.int64}, "dtype=torch.int64: expected a floating dtype"),
        ({"device_map": "warp"}, "device_map='warp': expected a device for the whole model"),
        ({"device_map": {"encoder": "cpu", "decoder": "cpu"}}, "device_map={'encoder'.*: expected a device"),
    ],
)
def test_keywords_that_mean_nothing_to_released_weights_are_refused(released, tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        MaskTokenizer.from_pretrained(save(released_state(released), tmp_path), **keywords)


def test_weights_stored_in_half_precision_load_as_float32(released, tmp_path):
    loaded = MaskTokenizer.from_released(save({k: v.half() for k, v in released_state(released).items()}, tmp_path))
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_on_the_fly_in_bfloat16_the_quantizer_stays_float32(released, tmp_path, dtype):
    loaded = MaskTokenizer.from_pretrained(save(released_state(released), tmp_path), dtype=dtype)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.quantize.codebook(), released.quantize.codebook())


def test_a_converted_folder_is_the_model_converted_on_the_fly(released, tmp_path):
    path = save(released_state(released), tmp_path)
    MaskTokenizer.from_released(path).save_pretrained(tmp_path / "out")
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
        (lambda s: s.update(note="hello"), r"entries \['note'\] are not tensors"),
    ],
)
def test_what_does_not_fit_is_named(released, tmp_path, change, message):
    state = released_state(released)
    change(state)
    with pytest.raises(ValueError, match=message):
        MaskTokenizer.from_released(save(state, tmp_path))


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds a list, expected a dictionary of tensors"):
        MaskTokenizer.from_released(save([torch.zeros(1)], tmp_path))
    with pytest.raises(ValueError, match="no key '.*', so this is not a HiMTok mask tokenizer"):
        MaskTokenizer.from_released(save({"model": {"weight": torch.zeros(1)}}, tmp_path))
    with pytest.raises(ValueError, match="found none"):
        MaskTokenizer.from_released(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "an empty file"),
        (b"hello, I am a text file\n", r"a text \(hello, I am a text file\)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 4096\n",
            "a git-lfs pointer to a file of 4,096",
        ),
    ],
)
def test_a_text_file_named_pth_is_named_in_one_line(tmp_path, content, named):
    path = tmp_path / "himtok.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"himtok.pth: got {named}") as error:
        MaskTokenizer.from_released(path)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_a_truncated_file_is_refused(released, tmp_path):
    path = save(released_state(released), tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="got a file that is cut off after 5,000 bytes"):
        MaskTokenizer.from_released(path)


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
