"""A checkpoint that cannot be converted is rejected with one line that says why, and no model is written."""

import json

import huggingface_hub
import pytest
import torch
from chat_models import (
    CODES,
    chat_model,
    internlm2_files,
    mask_tokenizer,
    qwen2_files,
    rows_needed,
    train_sentencepiece,
    with_tokenizer,
)
from tiny_models import released_state


@pytest.fixture
def refused(himtok, tmp_path):
    def check(source, *messages, options=("--skip_tokenizer",)):
        status, out, err = himtok("convert", source, tmp_path / "out", *options)
        assert status == 2 and not out, (out, err)
        assert err.startswith("error: ") and err.count("\n") == 1, err
        for message in messages:
            assert message in err, err
        assert not (tmp_path / "out" / "config.json").exists()

    return check


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return internlm2_files(train_sentencepiece(tmp_path_factory.mktemp("sp")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json, expected the folder of an InternVL chat model"),
        ("{", "config.json: got JSON that ends in the middle"),
        ("[]", "holds a list, expected a JSON object"),
        ('{"model_type": "llama"}', "model_type: got 'llama', expected 'internvl_chat'"),
        ('{"model_type": "internvl_chat"}', "expected objects vision_config and llm_config"),
        ('{"model_type": "internvl", "text_config": {}}', "is already converted"),
    ],
)
def test_a_folder_without_a_chat_model_is_rejected(refused, tmp_path, config, message):
    folder = tmp_path / "source"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(ps_version="v1"), "ps_version: got 'v1', expected 'v2'"),
        (lambda c: c.update(pad2square=True), "pad2square: got True"),
        (lambda c: c.update(downsample_ratio=0.3), "downsample_ratio: got 0.3"),
        (lambda c: c["llm_config"].update(architectures=["PhiForCausalLM"]), "got 'PhiForCausalLM', expected one of"),
        (lambda c: c["llm_config"].update(rope_scaling={"type": "yarn"}), "rope_scaling: got 'yarn'"),
        (lambda c: c["llm_config"].pop("hidden_size"), "llm_config: got {'hidden_size': None}, expected positive"),
    ],
)
def test_settings_that_transformers_does_not_support_are_rejected(refused, tmp_path, change, message):
    chat = chat_model()
    change(chat.config)
    refused(chat.write(tmp_path / "source"), message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downsample_ratio": None}, "downsample_ratio: got None, expected a positive number"),
        ({"downsample_ratio": "0.5"}, "downsample_ratio: got '0.5', expected a positive number"),
        ({"downsample_ratio": -0.5}, "downsample_ratio: got -0.5"),
        ({"downsample_ratio": 0.75}, "downsample_ratio: got 0.75, expected 1 / n with an n that divides 4 patches"),
        ({"downsample_ratio": 1e-320}, "downsample_ratio: got 1e-320"),
        ({"force_image_size": "56"}, "force_image_size: got '56', expected a positive integer"),
        ({"force_image_size": 7}, "vision_config.patch_size: got 14, expected at most 7"),
        ({"max_dynamic_patch": "4"}, "max_dynamic_patch: got '4', expected a positive integer"),
        ({"template": ["internvl2_5"]}, "template: got ['internvl2_5'], expected a string"),
        ({"select_layer": "last"}, "select_layer: got 'last', expected an integer"),
        ({"vision_config.patch_size": 0}, "vision_config: got {'patch_size': 0}, expected positive integers"),
        ({"vision_config.patch_size": [14, 14]}, "vision_config: got {'patch_size': [14, 14]}"),
        ({"vision_config.hidden_size": True}, "vision_config: got {'hidden_size': True}"),
        ({"vision_config.num_channels": "3"}, "vision_config.num_channels: got '3'"),
        ({"vision_config.norm_type": "batch_norm"}, "vision_config.norm_type: got 'batch_norm', expected one of"),
        ({"vision_config.qkv_bias": "yes"}, "vision_config.qkv_bias: got 'yes', expected true or false"),
        ({"llm_config.num_attention_heads": 0}, "llm_config: got {'num_attention_heads': 0}"),
        ({"llm_config.num_attention_heads": 5}, "llm_config.num_attention_heads: got 5, expected one that divides"),
        ({"llm_config.num_key_value_heads": 0}, "llm_config.num_key_value_heads: got 0, expected a positive"),
        ({"llm_config.num_key_value_heads": 3}, "llm_config.num_key_value_heads: got 3, expected one that divides 4"),
        ({"llm_config.architectures": [{}]}, "llm_config.architectures: got {}"),
        ({"llm_config.rope_theta": "1e6"}, "llm_config.rope_theta: got '1e6', expected a positive number"),
        ({"llm_config.rope_scaling": "dynamic"}, "llm_config.rope_scaling: got 'dynamic', expected {"),
        ({"llm_config.rope_scaling": {"type": "dynamic"}}, "llm_config.rope_scaling.factor: got None"),
        ({"llm_config.rope_scaling": {"type": "linear", "factor": "2"}}, "llm_config.rope_scaling.factor: got '2'"),
        ({"llm_config.rope_scaling": {"type": ["dynamic"]}}, "llm_config.rope_scaling: got ['dynamic']"),
        ({"llm_config.rms_norm_eps": "1e-5"}, "llm_config.rms_norm_eps: got '1e-5', expected a positive number"),
    ],
)
def test_invalid_values_are_rejected(refused, tmp_path, fields, message):
    """Values of the wrong type, values that are not positive, and sizes that contradict each other."""
    chat = chat_model()
    for field, value in fields.items():
        part, _, name = field.rpartition(".")
        (chat.config[part] if part else chat.config)[name] = value
    refused(chat.write(tmp_path / "source"), message)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "yarn"}, "config.json: transformers rejects it"),
        ({"type": "spiral", "factor": 2.0}, "llm_config.rope_scaling: got 'spiral', expected one of ['default',"),
    ],
)
def test_incomplete_or_unknown_rope_scaling_of_qwen2_is_rejected(refused, tmp_path, scaling, message):
    chat = chat_model(llm="Qwen2ForCausalLM", rope_scaling=scaling)
    refused(chat.write(tmp_path / "source"), message)


def test_missing_and_unknown_keys_are_named(refused, tmp_path):
    chat = chat_model()
    gone = "language_model.model.layers.1.attention.wqkv.weight"
    del chat.state[gone]
    chat.state["language_model.model.layers.0.lora.weight"] = torch.zeros(2)
    chat.state["mlp1.3.bias"] = torch.zeros(7)
    source = chat.write(tmp_path / "source", shards=2)
    refused(
        source,
        f"missing keys ['{gone}']",
        "unknown keys ['language_model.model.layers.0.lora.weight']",
        "mlp1.3.bias (7,) instead of (32,)",
    )


def test_missing_and_unknown_keys_of_the_mask_tokenizer_are_named(refused, tmp_path):
    chat = chat_model()
    del chat.state["mask_decoder.latent_tokens"]
    refused(chat.write(tmp_path / "source"), "no key 'latent_tokens'", "mask_decoder.*")
    chat = chat_model()
    chat.state["mask_decoder.extra"] = torch.zeros(1)
    refused(chat.write(tmp_path / "other"), "unknown keys ['extra']")


def test_a_tied_head_that_differs_is_rejected(refused, tmp_path):
    chat = chat_model(tie_word_embeddings=True)
    chat.state["language_model.output.weight"] = torch.ones(512, 32)
    refused(chat.write(tmp_path / "source"), "language_model.output.weight: differs from")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0, 6, 5000, -1])
def test_a_truncated_shard_is_rejected(refused, tmp_path, suffix, kept):
    source = chat_model().write(tmp_path / "source", shards=2, suffix=suffix)
    shard = sorted(source.glob(f"*-00002-of-*.{suffix}"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:kept])
    refused(source, shard.name)


def test_a_missing_shard_is_named(refused, tmp_path):
    source = chat_model().write(tmp_path / "source", shards=2)
    (source / "model-00001-of-00002.safetensors").unlink()
    refused(source, "lists ['model-00001-of-00002.safetensors'], which are missing")


@pytest.mark.parametrize("weight_map", [[], {}, None, "model.safetensors", {"mlp1.0.bias": 1}])
def test_an_index_without_file_names_is_rejected(refused, tmp_path, weight_map):
    source = chat_model().write(tmp_path / "source", shards=2)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(source, "model.safetensors.index.json: weight_map: expected an object that names a file for each key")


def test_a_dtype_that_safetensors_does_not_support_is_rejected(refused, tmp_path):
    chat = chat_model()
    chat.state["mlp1.0.bias"] = chat.state["mlp1.0.bias"].to(torch.complex64)
    refused(chat.write(tmp_path / "source", suffix="bin"), "dtypes {'mlp1.0.bias': 'torch.complex64'}, expected one of")


def test_a_folder_without_weights_is_rejected(refused, tmp_path):
    source = chat_model().write(tmp_path / "source")
    (source / "model.safetensors").unlink()
    refused(source, "no weights, expected *.safetensors or pytorch_model*.bin")


def test_a_bin_file_that_would_run_code_is_rejected(refused, tmp_path):
    source = chat_model().write(tmp_path / "source", suffix="bin")
    torch.save({"a": print}, source / "pytorch_model.bin")
    refused(source, "not a weights file of plain tensors")


def test_a_vocabulary_too_small_for_the_mask_tokens_is_rejected(refused, tmp_path, files):
    rows = rows_needed(files)
    source = with_tokenizer(files, vocab_size=rows - 1).write(tmp_path / "source")
    message = f"llm_config.vocab_size: got {rows - 1}, expected at least {rows} for mask tokens with ids"
    refused(source, message, options=())
    source = chat_model(vocab_size=CODES + 1).write(tmp_path / "tiny")
    refused(source, f"llm_config.vocab_size: got {CODES + 1}, expected at least {CODES + 2}")


@pytest.mark.parametrize("stated_by", ["added_tokens.json", "tokenizer_config.json"])
def test_a_vocabulary_too_small_for_the_ids_in_tokenizer_files_is_rejected(refused, tmp_path, files, stated_by):
    rows = rows_needed(files)
    chat = chat_model(texts={stated_by: files[stated_by]}, vocab_size=rows - 1)
    refused(chat.write(tmp_path / "source"), f"got {rows - 1}, expected at least {rows} for mask tokens with ids")


def test_fewer_token_embeddings_than_the_vocabulary_size_are_rejected(refused, tmp_path, files):
    chat = with_tokenizer(files)
    chat.config["llm_config"]["vocab_size"] += 8
    refused(chat.write(tmp_path / "source"), "language_model.model.tok_embeddings.weight", options=())


def without(files, name):
    return {key: content for key, content in files.items() if key != name}


def test_missing_and_invalid_tokenizer_files_are_rejected(refused, tmp_path, files):
    rows = rows_needed(files)
    cases = {
        "none": (without(files, "tokenizer.model"), "no text tokenizer, expected tokenizer.model"),
        "broken": ({**files, "tokenizer.model": b"\x08\xff nonsense"}, "not a SentencePiece model"),
        "empty": ({**files, "tokenizer.model": b""}, "not a SentencePiece model (none of 0 pieces"),
        "no masks": (drop(files, "<|mt_3|>"), "text tokenizer lacks 1 of the 14 mask tokens"),
        "no images": (drop(files, "<IMG_CONTEXT>"), "text tokenizer lacks ['<IMG_CONTEXT>']"),
        "twice": ({**files, "added_tokens.json": {**files["added_tokens.json"], "other": rows - 1}}, "contradict"),
    }
    for name, (changed, message) in cases.items():
        source = with_tokenizer(changed, vocab_size=rows).write(tmp_path / name)
        if message == "contradict":
            message = f"id {rows - 1} is"
        refused(source, message, options=())


TOKENIZER_CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("added_tokens.json", {"<img>": "first"}, "added_tokens.json: <img>: got 'first', expected a token id"),
        ("added_tokens.json", {"<img>": 1.5}, "added_tokens.json: <img>: got 1.5"),
        ("added_tokens.json", {"<img>": None}, "added_tokens.json: <img>: got None"),
        (
            TOKENIZER_CONFIG,
            {"added_tokens_decoder": {"5": {}}},
            f"{TOKENIZER_CONFIG}: added_tokens_decoder.5: got {{}}",
        ),
        (
            TOKENIZER_CONFIG,
            {"added_tokens_decoder": {"5": "a"}},
            f"{TOKENIZER_CONFIG}: added_tokens_decoder.5: got 'a'",
        ),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder: got 'x'"),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": ["a"]}, "added_tokens_decoder: got a list, expected an object"),
        (TOKENIZER_CONFIG, {"eos_token": 2}, f"{TOKENIZER_CONFIG}: eos_token: got 2"),
        (SPECIAL, {"pad_token": {"text": "a"}}, f"{SPECIAL}: pad_token: got {{'text': 'a'}}"),
        (SPECIAL, {"additional_special_tokens": "a"}, f"{SPECIAL}: additional_special_tokens: got 'a'"),
        (SPECIAL, {"additional_special_tokens": [3]}, f"{SPECIAL}: additional_special_tokens: got 3"),
    ],
)
def test_invalid_entries_about_tokens_are_rejected(refused, tmp_path, files, file, change, message):
    changed = {**files, file: {**files[file], **change}}
    refused(chat_model(texts=changed, vocab_size=rows_needed(files)).write(tmp_path / "source"), message, options=())


def test_invalid_entries_about_added_tokens_are_rejected_with_skip_tokenizer(refused, tmp_path, files):
    changed = {**files, "added_tokens.json": {"<img>": -1}}
    source = chat_model(texts=changed, vocab_size=rows_needed(files)).write(tmp_path / "source")
    refused(source, "added_tokens.json: <img>: got -1, expected a token id")


MERGES, FAST = "merges.txt", "tokenizer.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (MERGES, lambda text: text + "a b c\n", "expected two pieces of the vocabulary that make a third"),
        (MERGES, lambda text: text.replace("#version: 0.2", "a"), f"{MERGES}: line 1: got ['a'], expected two pieces"),
        (MERGES, lambda text: text + "e §\n", "got ['e', '§'], expected two pieces"),
        (MERGES, lambda text: text + "Q Z\n", "got ['Q', 'Z'], expected two pieces"),
        (MERGES, lambda text: text.encode() + b"\xff", f"{MERGES}: not a text file"),
        ("vocab.json", lambda ids: ids | {"zz": "last"}, "vocab.json: zz: got 'last', expected a token id"),
        ("vocab.json", lambda ids: ids | {"zz": 2**40}, "vocab.json: not a text tokenizer"),
    ],
)
def test_vocabularies_and_merges_that_do_not_match_are_rejected(refused, tmp_path, file, change, message):
    files = qwen2_files()
    changed = {**files, file: change(files[file])}
    refused(with_tokenizer(changed, llm="Qwen2ForCausalLM").write(tmp_path / "source"), message, options=())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", f"{FAST}: got JSON that ends in the middle"),
        ({"model": {"type": "BPE"}}, f"{FAST}: not a text tokenizer"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}, "model.merges[0]: got"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [3]}}, "model.merges[0]: got 3"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": 1}, "added_tokens: got a int"),
        ({"model": {}, "added_tokens": [{"id": 1}]}, f"{FAST}: added_tokens: got {{'id': 1}}, expected an object"),
        ({"model": {}, "added_tokens": [{"content": "a"}]}, f"{FAST}: a: got None, expected a token id"),
    ],
)
def test_an_invalid_fast_tokenizer_is_rejected(refused, tmp_path, content, message):
    refused(chat_model(texts={FAST: content}).write(tmp_path / "source"), message, options=())


def drop(files, token):
    ids = {text: i for text, i in files["added_tokens.json"].items() if text != token}
    config = json.loads(json.dumps(files["tokenizer_config.json"]))
    decoder = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {i: fields for i, fields in decoder.items() if fields["content"] != token}
    return {**files, "added_tokens.json": ids, "tokenizer_config.json": config}


def test_an_image_token_id_that_the_tokenizer_contradicts_is_rejected(refused, tmp_path, files):
    source = with_tokenizer(files).write(tmp_path / "source")
    refused(source, "image_token_id: got 3, expected", options=("--image_token_id", 3))
    source = chat_model().write(tmp_path / "other")
    refused(source, "image_token_id: got 512, expected 0 to 511", options=("--skip_tokenizer", "--image_token_id", 512))


def test_a_conversation_template_of_another_family_is_rejected(refused, tmp_path, files):
    chat = with_tokenizer(files)
    chat.config["template"] = "phi3-chat"
    refused(chat.write(tmp_path / "source"), "template: got 'phi3-chat', expected one of", options=())


def test_an_unreachable_hub_is_reported(refused, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refused("someone/InternVL2_5-HiMTok-8B", "downloading it from the hub failed (no route to the hub)")


def test_only_the_needed_files_are_downloaded_from_a_hub(himtok, tmp_path, monkeypatch):
    source = chat_model().write(tmp_path / "source", shards=2)
    asked = []

    def download(name, allow_patterns, **kwargs):
        asked.append(allow_patterns)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    status, _, err = himtok("convert", "someone/model", tmp_path / "out", "--skip_tokenizer")
    assert status == 0, err
    assert asked[1] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_a_folder_that_is_not_empty_is_left_alone(himtok, tmp_path):
    source = chat_model().write(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    status, _, err = himtok("convert", source, tmp_path / "out")
    assert status == 2 and "is not empty" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--skip_tokenizer",), "--skip_tokenizer"),
        (("--image_token_id", 0), "--image_token_id"),
        (("--skip_tokenizer", "--image_token_id", 7), "--skip_tokenizer and --image_token_id"),
    ],
)
def test_options_of_chat_models_are_rejected_with_a_mask_tokenizer_alone(refused, tmp_path, options, named):
    torch.save(released_state(mask_tokenizer()), tmp_path / "himtok.pth")
    refused(tmp_path / "himtok.pth", f"{named}: expected only with a chat model", options=options)
