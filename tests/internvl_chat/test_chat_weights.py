"""The converted model computes the same as a second implementation that reads the authors' layout."""

import json
import math

import pytest
import torch
from chat_models import MASK_TOKENS, chat_config, chat_model, draw_state
from safetensors import safe_open
from tiny_models import random_squares
from transformers import AutoModelForImageTextToText

from himtok_plugin import MaskTokenizer
from himtok_plugin.internvl_chat.key_mapping import split_grouped_qkv

CONTEXT = 500  # id of the image token


def convert(himtok, model, folder, *options, **how):
    source = model.write(folder / "source", **how)
    status, out, err = himtok(
        "convert", source, folder / "out", "--skip_tokenizer", "--image_token_id", CONTEXT, *options
    )
    assert status == 0, err
    assert out.strip() == str(folder / "out")
    return folder / "out"


def load(folder):
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


# A second implementation from the formulas, with loops where the model reshapes.


def norm(x, state, key, config):
    weight = state[f"{key}.weight"]
    if config["norm_type"] == "layer_norm":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, state[f"{key}.bias"], config["layer_norm_eps"])
    return rms(x, weight, config["layer_norm_eps"])


def rms(x, weight, eps):
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def linear(x, state, key):
    y = x @ state[f"{key}.weight"].T
    return y + state[f"{key}.bias"] if f"{key}.bias" in state else y


def attend(q, k, v, causal):
    scores = q @ k.T / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v


def vision(tiles, state, config):
    """(n, 3, s, s) -> (n, tokens, width of the language model)."""
    v = config["vision_config"]
    width, heads = v["hidden_size"], v["num_attention_heads"]
    d = width // heads
    features = []
    for tile in tiles:
        patches = torch.nn.functional.conv2d(
            tile[None],
            state["vision_model.embeddings.patch_embedding.weight"],
            state["vision_model.embeddings.patch_embedding.bias"],
            stride=v["patch_size"],
        )
        side = patches.shape[-1]
        x = torch.cat([state["vision_model.embeddings.class_embedding"][0], patches[0].flatten(1).T])
        x = x + state["vision_model.embeddings.position_embedding"][0]
        for i in range(v["num_hidden_layers"] + 1 + config["select_layer"]):
            layer = f"vision_model.encoder.layers.{i}"
            y = norm(x, state, f"{layer}.norm1", v)
            q, k, values = linear(y, state, f"{layer}.attn.qkv").split(width, dim=-1)
            if v["qk_normalization"]:
                q = rms(q, state[f"{layer}.attn.q_norm.weight"], 1e-6)
                k = rms(k, state[f"{layer}.attn.k_norm.weight"], 1e-6)
            parts = [slice(j * d, (j + 1) * d) for j in range(heads)]
            y = torch.cat([attend(q[:, part], k[:, part], values[:, part], causal=False) for part in parts], dim=-1)
            x = x + state[f"{layer}.ls1"] * linear(y, state, f"{layer}.attn.proj")
            y = torch.nn.functional.gelu(linear(norm(x, state, f"{layer}.norm2", v), state, f"{layer}.mlp.fc1"))
            x = x + state[f"{layer}.ls2"] * linear(y, state, f"{layer}.mlp.fc2")
        grid = x[1:].reshape(side, side, width)
        # Each token is a square of 2 x 2 patches, by rows; within it the patches follow each other by columns.
        tokens = [
            torch.cat([grid[2 * row + down, 2 * column + right] for down in (0, 1) for right in (0, 1)])
            for row in range(side // 2)
            for column in range(side // 2)
        ]
        y = torch.stack(tokens)
        y = torch.nn.functional.layer_norm(y, y.shape[-1:], state["mlp1.0.weight"], state["mlp1.0.bias"])
        features.append(linear(torch.nn.functional.gelu(linear(y, state, "mlp1.1")), state, "mlp1.3"))
    return torch.stack(features)


def rotate(x, base):
    """(n, d) at positions 0 … n - 1: the halves of the head are the two coordinates of each plane."""
    n, d = x.shape
    angles = torch.arange(n)[:, None] * base ** (-torch.arange(0, d, 2) / d)
    a, b = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


def heads_of(y, state, layer, llm):
    """Per query head: (q, k, v) of (n, d), from fused or from separate projections."""
    heads, kv = llm["num_attention_heads"], llm["num_key_value_heads"]
    d, shared = llm["hidden_size"] // heads, heads // kv
    found = []
    if f"{layer}.attention.wqkv.weight" in state:
        rows = linear(y, state, f"{layer}.attention.wqkv").split(d, dim=-1)
        for head in range(heads):
            group = head // shared * (shared + 2)
            found.append((rows[group + head % shared], rows[group + shared], rows[group + shared + 1]))
        return found
    q, k, v = (linear(y, state, f"{layer}.self_attn.{name}_proj").split(d, dim=-1) for name in "qkv")
    return [(q[head], k[head // shared], v[head // shared]) for head in range(heads)]


def language_model(ids, features, state, config):
    """(n,) ids -> (n, vocabulary) logits."""
    llm = config["llm_config"]
    fused = llm["architectures"] == ["InternLM2ForCausalLM"]
    names = ("attention.wo", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2", "attention_norm", "ffn_norm")
    if not fused:
        names = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        names += ("input_layernorm", "post_attention_layernorm")
    out, gate, up, down, before, after = names
    embeddings = state[f"language_model.model.{'tok_embeddings' if fused else 'embed_tokens'}.weight"]
    x = embeddings[ids].clone()
    x[ids == CONTEXT] = features.reshape(-1, x.shape[-1])
    base, longest = llm["rope_theta"], llm["max_position_embeddings"]
    d = llm["hidden_size"] // llm["num_attention_heads"]
    if len(ids) > longest and llm["rope_scaling"]:
        factor = llm["rope_scaling"]["factor"]
        base *= (factor * len(ids) / longest - (factor - 1)) ** (d / (d - 2))
    for i in range(llm["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}"
        y = rms(x, state[f"{layer}.{before}.weight"], llm["rms_norm_eps"])
        read = [attend(rotate(q, base), rotate(k, base), v, True) for q, k, v in heads_of(y, state, layer, llm)]
        x = x + linear(torch.cat(read, dim=-1), state, f"{layer}.{out}")
        y = rms(x, state[f"{layer}.{after}.weight"], llm["rms_norm_eps"])
        y = torch.nn.functional.silu(linear(y, state, f"{layer}.{gate}")) * linear(y, state, f"{layer}.{up}")
        x = x + linear(y, state, f"{layer}.{down}")
    x = rms(x, state["language_model.model.norm.weight"], llm["rms_norm_eps"])
    head = state.get(f"language_model.{'output' if fused else 'lm_head'}.weight", embeddings)
    return x @ head.T


QWEN2 = {"llm": "Qwen2ForCausalLM"}
KINDS = {
    "internlm2": {},
    "every head its own key": {"num_key_value_heads": 4},
    "one key for all": {"num_key_value_heads": 1, "bias": True},
    "large vision model": {"vision": {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}},
    "tied": {"tie_word_embeddings": True},
    "plain rope": {"rope_scaling": None, "rope_theta": 5e4},
    "qwen2": QWEN2,
    "qwen2, tied": {**QWEN2, "tie_word_embeddings": True, "rope_scaling": None},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [40, 300], ids=["short", "longer than trained"])
@torch.no_grad()
def test_the_converted_model_computes_the_same_as_the_second_implementation(himtok, tmp_path, kind, length):
    chat = chat_model(with_masks=False, **KINDS[kind])
    model = load(convert(himtok, chat, tmp_path))
    generator = torch.Generator().manual_seed(1)
    tiles = torch.randn(2, 3, 56, 56, generator=generator)
    ids = torch.randint(3, 400, (length,), generator=generator)
    ids[5:13] = CONTEXT
    features = vision(tiles, chat.state, chat.config)
    torch.testing.assert_close(model.get_image_features(tiles).pooler_output, features, atol=1e-4, rtol=1e-4)
    logits = language_model(ids, features, chat.state, chat.config)
    torch.testing.assert_close(model(input_ids=ids[None], pixel_values=tiles).logits[0], logits, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_image_features_come_from_the_layer_that_the_configuration_selects(himtok, tmp_path):
    chat = chat_model(with_masks=False)
    chat.config["select_layer"] = -2
    model = load(convert(himtok, chat, tmp_path))
    tiles = torch.randn(1, 3, 56, 56)
    expected = vision(tiles, chat.state, chat.config)
    torch.testing.assert_close(model.get_image_features(tiles).pooler_output, expected, atol=1e-4, rtol=1e-4)


def test_grouped_projections_are_split_as_by_hand():
    # Two groups, each of two query heads, a key and a value, all of width 1: 1x and 2x are queries, 1 and 2 keys.
    rows = torch.tensor([[11.0], [12], [1], [-1], [21], [22], [2], [-2]])
    q, k, v = split_grouped_qkv(rows, heads=4, kv_heads=2)
    assert (q.flatten().tolist(), k.flatten().tolist(), v.flatten().tolist()) == ([11, 12, 21, 22], [1, 2], [-1, -2])
    q, k, v = split_grouped_qkv(rows.flatten(), heads=4, kv_heads=2)
    assert (q.tolist(), k.tolist(), v.tolist()) == ([11, 12, 21, 22], [1, 2], [-1, -2])


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_and_bin_files_are_converted_to_the_same_weights(himtok, tmp_path, shards, suffix):
    chat = chat_model()
    expected = load(convert(himtok, chat, tmp_path / "one")).state_dict()
    out = convert(himtok, chat, tmp_path / "other", shards=shards, suffix=suffix)
    found = load(out).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert len(list(out.glob("*.safetensors"))) == shards
    assert (out / "model.safetensors.index.json").is_file() == (shards > 1)


def test_old_bin_files_are_read_too(himtok, tmp_path):
    chat = chat_model()
    source = chat.write(tmp_path / "source", suffix="bin")
    torch.save(chat.state, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    status, _, err = himtok("convert", source, tmp_path / "out", "--skip_tokenizer")
    assert status == 0, err
    assert load(tmp_path / "out").lm_head.weight.shape == (512, 32)


def test_the_dtype_stays_and_the_mask_tokenizer_is_float32(himtok, tmp_path):
    chat = chat_model()
    chat.state = {key: value.bfloat16() if value.is_floating_point() else value for key, value in chat.state.items()}
    out = convert(himtok, chat, tmp_path, shards=2)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(out).dtype == torch.bfloat16
    with safe_open(out / "mask_tokenizer" / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F32"}


def test_tensors_of_a_bin_file_may_share_memory_or_be_transposed(himtok, tmp_path):
    chat = chat_model(with_masks=False)
    expected = load(convert(himtok, chat, tmp_path / "plain")).state_dict()
    embeddings = chat.state["language_model.model.tok_embeddings.weight"]
    chat.state["language_model.output.weight"] = embeddings
    transposed = "language_model.model.layers.0.attention.wo.weight"
    chat.state[transposed] = chat.state[transposed].T.contiguous().T
    found = load(convert(himtok, chat, tmp_path / "views", suffix="bin")).state_dict()
    assert torch.equal(found.pop("lm_head.weight"), embeddings)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_converted_weights_are_as_readable_as_their_configuration(himtok, tmp_path):
    out = convert(himtok, chat_model(), tmp_path, shards=2)
    weights = [*out.glob("*.safetensors"), out / "mask_tokenizer" / "model.safetensors"]
    assert {path.stat().st_mode for path in weights} == {(out / "config.json").stat().st_mode}


@pytest.mark.parametrize("where", ["in the checkpoint", "beside it"])
@torch.no_grad()
def test_the_mask_tokenizer_is_converted_too(himtok, tmp_path, where):
    chat = chat_model(with_masks=where == "in the checkpoint")
    chat.state["sam.image_encoder.weight"] = torch.zeros(3)
    if where == "beside it":
        (tmp_path / "source").mkdir()
        torch.save({"model": chat.mask_tokenizer.state_dict()}, tmp_path / "source" / "himtok.pth")
    else:
        chat.state["mask_decoder.sam.weight"] = torch.zeros(3)
    out = convert(himtok, chat, tmp_path)
    masks = MaskTokenizer.from_pretrained(out)
    squares = random_squares(3)
    assert torch.equal(masks.encode(squares), chat.mask_tokenizer.encode(squares))
    assert torch.equal(masks(squares), chat.mask_tokenizer(squares))
    assert masks.config.latent_layout == "legacy_reshape"
    generation = json.loads((out / "generation_config.json").read_text())
    assert (generation["mask_decoding"], generation["mask_temperature"]) == ("soft", 0.5)
    assert generation["num_mask_tokens"] == MASK_TOKENS


def test_a_model_without_a_mask_tokenizer_is_converted_with_a_notice(himtok, tmp_path):
    source = chat_model(with_masks=False).write(tmp_path / "source")
    status, _, err = himtok("convert", source, tmp_path / "out", "--skip_tokenizer")
    assert status == 0 and "the checkpoint has no mask tokenizer" in err and "--image_token_id" in err
    assert not (tmp_path / "out" / "mask_tokenizer").exists()
    assert "mask_decoding" not in (tmp_path / "out" / "generation_config.json").read_text()


def test_ids_that_are_unknown_without_a_tokenizer_are_reported(himtok, tmp_path):
    source = chat_model().write(tmp_path / "source")
    status, _, err = himtok("convert", source, tmp_path / "out", "--skip_tokenizer")
    assert status == 0 and err.count("\n") == 2, err
    assert "config.json gets 92546, the id of InternVL2.5 models, but this vocabulary has only 512 rows" in err
    assert "eos_token_id: no tokenizer file has the id of <|im_end|>" in err
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2]
    source = chat_model(vocab_size=92547).write(tmp_path / "larger")
    _, _, err = himtok("convert", source, tmp_path / "other", "--skip_tokenizer")
    assert "config.json gets 92546, the id of InternVL2.5 models; set it with --image_token_id" in err


@pytest.mark.parametrize("own", [2, [2, 9]])
def test_answers_end_with_the_turn_if_a_file_has_the_id_of_its_token(himtok, tmp_path, own):
    texts = {"added_tokens.json": {"<|im_end|>": 7, "<IMG_CONTEXT>": 8}}
    source = chat_model(texts=texts, eos_token_id=own).write(tmp_path / "source")
    status, _, err = himtok("convert", source, tmp_path / "out", "--skip_tokenizer")
    assert status == 0 and not err
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [7, *(own if isinstance(own, list) else [own])]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["image_token_id"] == 8


def test_the_dtype_is_that_of_the_embeddings(himtok, tmp_path):
    """If dtypes are mixed: image features and hidden states of the language model are cast to it."""
    chat = chat_model(with_masks=False)
    key = "language_model.model.tok_embeddings.weight"
    chat.state[key] = chat.state[key].half()
    out = convert(himtok, chat, tmp_path)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"


def test_keys_and_configuration_are_those_that_transformers_writes(himtok, tmp_path):
    out = convert(himtok, chat_model(with_masks=False), tmp_path)
    load(out).save_pretrained(tmp_path / "again")
    with (
        safe_open(out / "model.safetensors", "pt") as ours,
        safe_open(tmp_path / "again/model.safetensors", "pt") as its,
    ):
        assert set(ours.keys()) == set(its.keys())
    ours, its = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "again"))
    for config in (ours, its):
        config["text_config"].pop("dtype", None), config["vision_config"].pop("dtype", None)
    assert ours == its
    assert ours["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert ours["text_config"]["rope_parameters"] == {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}


def test_a_tied_output_head_may_be_stored(himtok, tmp_path):
    chat = chat_model(with_masks=False, tie_word_embeddings=True)
    chat.state["language_model.output.weight"] = chat.state["language_model.model.tok_embeddings.weight"].clone()
    model = load(convert(himtok, chat, tmp_path))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_weights_are_drawn_for_the_whole_layout():
    """The other tests depend on it."""
    config = chat_config()
    assert all(value.std() > 0 for value in draw_state(config).values())
