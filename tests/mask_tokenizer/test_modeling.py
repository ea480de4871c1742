"""modeling.py: shapes, rejected input, dtypes, compilation, checkpointing, and saving."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_squares, tiny_model

from himtok_plugin.mask_tokenizer import MaskTokenizer

CODES = torch.tensor([[0, 11, 5, 3], [7, 7, 1, 2]])


def test_encode_and_decode_shapes_dtypes_and_ranges(model):
    codes = model.encode(random_squares(3))
    assert codes.shape == (3, 4) and codes.dtype == torch.int64 and 0 <= codes.min() <= codes.max() < 12
    for n in range(1, 5):
        probabilities = model.decode(codes[:, :n])
        assert probabilities.shape == (3, 16, 16) and probabilities.dtype == torch.float32
        assert 0 <= probabilities.min() and probabilities.max() <= 1
    assert torch.equal(model(random_squares(3)), model.decode(codes))


def test_encode_keeps_no_graph_and_latents_do(model):
    assert not model.encode(random_squares(1)).requires_grad
    assert model.encode_to_latents(random_squares(1)).requires_grad


def test_a_batch_is_its_masks_one_by_one(model):
    squares = random_squares(4)
    assert torch.equal(model.encode(squares), torch.cat([model.encode(square[None]) for square in squares]))
    assert torch.allclose(model.decode(CODES)[1:], model.decode(CODES[1:]), atol=1e-6)


def test_certain_probabilities_decode_as_their_codes(model):
    one_hot = torch.nn.functional.one_hot(CODES, 12).float()
    assert torch.allclose(model.decode_probabilities(one_hot), model.decode(CODES), atol=1e-6)


def test_zero_probabilities_are_not_a_missing_tail(model):
    with torch.no_grad():
        model.decoder.decoder_embed.bias.normal_()
    one_hot = torch.nn.functional.one_hot(CODES, 12).float()
    zeroed = one_hot.clone()
    zeroed[:, 2:] = 0
    dropped = model.decode_probabilities(one_hot[:, :2])
    assert torch.allclose(dropped, model.decode(CODES[:, :2]), atol=1e-6)
    assert not torch.allclose(model.decode_probabilities(zeroed), dropped, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(16, 16)), r"squares of shape \(16, 16\): expected \(b, 16, 16\)"),
        (lambda m: m.encode(torch.zeros(1, 8, 16)), r"squares of shape \(1, 8, 16\)"),
        (lambda m: m.encode(torch.zeros(1, 1, 16, 16)), "squares of shape"),
        (lambda m: m.encode(torch.zeros(1, 16, 16, dtype=torch.uint8)), "squares of dtype torch.uint8"),
        (lambda m: m.encode(torch.zeros(1, 16, 16, dtype=torch.bool)), "squares of dtype torch.bool"),
        (lambda m: m.decode(torch.tensor([1, 2])), r"codes of shape \(2,\): expected 2 dimensions with 1 to 4 tokens"),
        (lambda m: m.decode(torch.zeros(1, 0, dtype=torch.int64)), r"codes of shape \(1, 0\)"),
        (lambda m: m.decode(torch.zeros(1, 5, dtype=torch.int64)), r"codes of shape \(1, 5\)"),
        (lambda m: m.decode(torch.tensor([[1.0]])), "codes of dtype torch.float32: expected int64"),
        (lambda m: m.decode(torch.tensor([[0, 12]])), "codes from 0 to 12: expected 0 to 11"),
        (lambda m: m.decode(torch.tensor([[-1, 3]])), "codes from -1 to 3: expected 0 to 11"),
        (lambda m: m.decode_probabilities(torch.zeros(1, 12)), r"probabilities of shape \(1, 12\)"),
        (lambda m: m.decode_probabilities(torch.zeros(1, 5, 12)), r"probabilities of shape \(1, 5, 12\)"),
        (lambda m: m.decode_probabilities(torch.zeros(1, 4, 11)), "probabilities over 11 codes: expected 12"),
        (lambda m: m.encode(255 * random_squares(1)), r"squares from 0 to 255: expected values within \[0, 1\]"),
        (lambda m: m.encode(random_squares(1) * torch.nan), "squares from nan to nan"),
        (lambda m: m.encode_to_latents(random_squares(1).half() - 1), "squares from -1 to 0"),
        (lambda m: m.decode_probabilities(torch.full((1, 4, 12), 3.0)), "probabilities from 3 to 3: expected values"),
        (lambda m: m.decode_probabilities(torch.full((1, 4, 12), torch.nan)), "probabilities from nan to nan"),
        (lambda m: m.encode(random_squares(1).numpy()), "squares is of type ndarray: expected a tensor"),
        (lambda m: m.decode([[1, 2]]), "codes is of type list: expected a tensor"),
        (lambda m: m.decode_probabilities([[[0.5]]]), "probabilities is of type list: expected a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_rounding_of_half_precision_is_within_the_range(model):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        squares = random_squares(2).to(dtype)
        assert torch.equal(model.encode(squares), model.encode(random_squares(2)))
        assert model.decode_probabilities(torch.randn(1, 4, 12).to(dtype).softmax(-1)).shape == (1, 16, 16)
    assert model.encode(random_squares(2) * (1 + 1e-6)).shape == (2, 4)


def test_no_value_is_read_from_another_device_than_the_cpu(monkeypatch):
    """It would make every training step wait. On `meta` there are no values to read."""
    model = tiny_model().to("meta")
    monkeypatch.setattr(model.quantize, "expected_code_vectors", lambda probabilities: probabilities[..., :3])
    assert model.encode_to_latents(torch.zeros(2, 16, 16, device="meta")).shape == (2, 4, 3)
    assert model.decode_probabilities(torch.zeros(2, 4, 12, device="meta")).shape == (2, 16, 16)


def test_soft_decoding_passes_gradient_to_probabilities_and_de_tokenizer(model):
    probabilities = torch.rand(2, 4, 12).requires_grad_()
    model.decode_probabilities(probabilities).sum().backward()
    assert (probabilities.grad != 0).any(dim=-1).all()
    assert model.decoder.mask_token.grad.abs().sum() > 0 and model.encoder.class_embedding.grad is None


def test_bfloat16_keeps_the_quantizer_in_float32_and_answers_in_float32(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = MaskTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.quantize.embedding.weight.dtype == torch.float32
    assert torch.equal(half.quantize.codebook(), model.quantize.codebook())
    assert half.encode(random_squares(2)).dtype == torch.int64
    probabilities = half.decode(CODES)
    assert probabilities.dtype == torch.float32 and torch.allclose(probabilities, model.decode(CODES), atol=0.1)


@pytest.mark.parametrize("cast", ["to", "bfloat16", "half"])
def test_a_cast_model_keeps_the_quantizer_in_float32(cast):
    model, before = tiny_model(), tiny_model()
    model = model.to(torch.bfloat16) if cast == "to" else getattr(model, cast)()
    assert model.dtype in (torch.bfloat16, torch.float16)
    assert torch.equal(model.quantize.codebook(), before.quantize.codebook())
    assert {p.dtype for p in model.quantize.parameters()} == {torch.float32}
    assert torch.allclose(model.decode(CODES), before.decode(CODES), atol=0.1)


def test_autocast_answers_in_float32_close_to_full_precision(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.encode(random_squares(2)).shape == (2, 4)
        probabilities = model.decode(CODES)
        soft = model.decode_probabilities(torch.nn.functional.one_hot(CODES, 12).float())
    assert probabilities.dtype == soft.dtype == torch.float32
    assert torch.allclose(probabilities, model.decode(CODES), atol=0.1)


def test_gradient_checkpointing_gives_the_same_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.encoder.transformer)
        (model.encode_to_latents(random_squares(2)).square().sum() + model.decode(CODES).square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5), name


def test_decode_compiles_without_graph_breaks(model):
    compiled = torch.compile(model.decode, fullgraph=True, backend="eager")
    with torch.no_grad():
        for codes in (CODES, CODES[:, :2]):
            assert torch.allclose(compiled(codes), model.decode(codes), atol=1e-6)


def test_encoding_and_soft_decoding_compile_without_graph_breaks(model):
    one_hot = torch.nn.functional.one_hot(CODES, 12).float()
    with torch.no_grad():
        encode = torch.compile(model.encode, fullgraph=True, backend="eager")
        assert torch.equal(encode(random_squares(2)), model.encode(random_squares(2)))
        decode = torch.compile(model.decode_probabilities, fullgraph=True, backend="eager")
        assert torch.allclose(decode(one_hot), model.decode(CODES), atol=1e-6)


def test_saving_and_loading_gives_the_same_model(tmp_path):
    model = tiny_model(latent_layout="legacy_reshape", codebook_ready=True)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = MaskTokenizer.from_pretrained(str(tmp_path))
    assert again.config.codebook_ready and not again.training
    assert torch.equal(again.encode(random_squares(3)), model.encode(random_squares(3)))
    assert torch.equal(again.decode(CODES), model.decode(CODES))


def test_a_checkpoint_folder_with_the_tokenizer_beside_an_lmm_loads(model, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    model.save_pretrained(tmp_path / "mask_tokenizer")
    assert torch.equal(MaskTokenizer.from_pretrained(tmp_path).decode(CODES), model.decode(CODES))


def test_a_subfolder_is_where_the_tokenizer_is_looked_for(model, tmp_path):
    model.save_pretrained(tmp_path / "mask_tokenizer")
    model.save_pretrained(tmp_path / "parts" / "masks")
    for subfolder in ("mask_tokenizer", "mask_tokenizer/", "parts/masks", None, ""):
        loaded = MaskTokenizer.from_pretrained(tmp_path, subfolder=subfolder)
        assert torch.equal(loaded.decode(CODES), model.decode(CODES))
    with pytest.raises(ValueError, match="other holds neither a mask tokenizer's config.json"):
        MaskTokenizer.from_pretrained(tmp_path, subfolder="other")


def test_a_tokenizer_in_several_files_loads(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(MaskTokenizer.from_pretrained(tmp_path).decode(CODES), model.decode(CODES))


def test_fields_of_the_configuration_may_be_given_and_are_checked(model, tmp_path):
    model.save_pretrained(tmp_path)
    unit = MaskTokenizer.from_pretrained(tmp_path, normalize_codebook=True)
    assert unit.config.normalize_codebook and torch.equal(
        unit.encode(random_squares(2)), model.encode(random_squares(2))
    )
    assert torch.allclose(unit.quantize.code_vectors(CODES).norm(dim=-1), torch.ones(2, 4))
    with pytest.raises(ValueError, match="latent_layout='diagonal': expected one of"):
        MaskTokenizer.from_pretrained(tmp_path, latent_layout="diagonal")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "kind", "key"),
    [
        (lambda w: w.pop("decoder.mask_token"), "missing_keys", "decoder.mask_token"),
        (lambda w: w.update(stray=torch.zeros(2)), "unexpected_keys", "stray"),
        (lambda w: w.update({"latent_tokens": torch.zeros(3, 16)}), "mismatched_keys", "latent_tokens"),
    ],
)
def test_keys_that_do_not_fit_are_named(model, tmp_path, change, kind, key):
    model.save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ValueError, match=f"does not fit.*{kind}.*{key}"):
        MaskTokenizer.from_pretrained(tmp_path)


def test_damaged_folders_are_refused_in_one_line(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    complete = weights.read_bytes()
    weights.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors: got a file that is cut off after [\d,]+ of [\d,]+ bytes"):
        MaskTokenizer.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be read: Error no file named model.safetensors"):
        MaskTokenizer.from_pretrained(tmp_path)
    weights.write_bytes(complete)
    config.write_text(config.read_text()[:-20])
    with pytest.raises(ValueError, match="config.json: got JSON that ends in the middle"):
        MaskTokenizer.from_pretrained(tmp_path)
    config.write_text(json.dumps({"model_type": "himtok_mask_tokenizer", "num_mask_tokens": -3}))
    with pytest.raises(ValueError, match="num_mask_tokens=-3"):
        MaskTokenizer.from_pretrained(tmp_path)


def test_an_empty_folder_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match="neither a mask tokenizer's config.json, nor mask_tokenizer/, nor himtok.pth"):
        MaskTokenizer.from_pretrained(tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_error(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError, match="'someone/tokenizer': no such folder, and downloading it from the hub failed.*no network"
    ):
        MaskTokenizer.from_pretrained("someone/tokenizer")
