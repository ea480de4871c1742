"""`himtok split-adapter`: a base model with the adapter's token embeddings, and a plain LoRA, answer as before."""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_adapters import CODES, TEXTS, TinyAdapter, build_adapter, compute_logits, load_adapted
from tiny_models import tiny_model
from transformers import AutoModelForImageTextToText, AutoTokenizer

from himtok_plugin import MaskTokenizer
from himtok_plugin.adapters.split import split_adapter
from himtok_plugin.adapters.trained_embeddings import find_tensor
from himtok_plugin.checkpoints.adapter_files import AdapterFiles
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.lmm.vocabulary import MaskVocabulary, extend_tokenizer


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> TinyAdapter:
    return build_adapter(tmp_path_factory.mktemp("tied"))


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("has_mask_tokens", [True, False], ids=["mask_tokens", "no_mask_tokens"])
@pytest.mark.parametrize("shard_size", ["5GB", "30KB"], ids=["one_file", "sharded"])
def test_base_and_plain_lora_have_the_logits_of_the_adapter(tmp_path, tied, has_mask_tokens, shard_size):
    made = build_adapter(tmp_path, tied, has_mask_tokens, shard_size)
    assert (made.base / "model.safetensors.index.json").exists() == (shard_size == "30KB")
    split_adapter(made.folder, tmp_path / "out")
    base, plain = tmp_path / "out" / "base", tmp_path / "out" / "adapter"
    with safe_open(plain / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in key for key in file.keys())
    adapted = load_adapted(base, plain)
    assert torch.equal(compute_logits(adapted, made.inputs, made.logits.shape[-1]), made.logits)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert MaskVocabulary.of(tokenizer, CODES).ids() == made.ids
    model = adapted.get_base_model()
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.text_config.vocab_size == len(model.get_input_embeddings().weight) >= len(tokenizer)


def test_only_the_mask_tokens_embeddings_change_in_the_base(adapter, tmp_path):
    split_adapter(adapter.folder, tmp_path / "out")
    before = load_file(adapter.base / "model.safetensors")
    after = load_file(tmp_path / "out" / "base" / "model.safetensors")
    assert before.keys() == after.keys()
    (changed,) = (key for key in before if not torch.equal(before[key], after[key]))
    assert changed.endswith("embed_tokens.weight")
    rows = (before[changed] != after[changed]).any(1).nonzero()[:, 0].tolist()
    assert rows == adapter.ids


def test_embeddings_get_the_dtype_of_the_base(tmp_path):
    made = build_adapter(tmp_path, tied=False, dtype=torch.bfloat16)
    split_adapter(made.folder, tmp_path / "out")
    after = load_file(tmp_path / "out" / "base" / "model.safetensors")
    trained = load_file(made.folder / "adapter_model.safetensors")
    for layer in ("model.language_model.embed_tokens", "lm_head"):
        key = find_tensor(f"{layer}.weight", after)
        delta = trained[f"base_model.model.{layer}.token_adapter.trainable_tokens_delta"]
        assert after[key].dtype == torch.bfloat16
        assert torch.equal(after[key][made.ids], delta.to(torch.bfloat16))


def test_stored_copy_of_a_tied_head_changes_too(adapter, tmp_path):
    base = shutil.copytree(adapter.base, tmp_path / "base_model")
    weights = load_file(base / "model.safetensors")
    (embeddings,) = (key for key in weights if key.endswith("embed_tokens.weight"))
    save_file({**weights, "lm_head.weight": weights[embeddings].clone()}, base / "model.safetensors", {"format": "pt"})
    split_adapter(adapter.folder, tmp_path / "out", str(base))
    after = load_file(tmp_path / "out" / "base" / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], after[embeddings])
    logits = compute_logits(
        load_adapted(tmp_path / "out" / "base", tmp_path / "out" / "adapter"), adapter.inputs, adapter.logits.shape[-1]
    )
    assert torch.equal(logits, adapter.logits)


def test_other_files_ride_along_and_states_of_training_do_not(adapter, tmp_path):
    base, folder = (shutil.copytree(each, tmp_path / each.name) for each in (adapter.base, adapter.folder))
    tiny_model(seed=5).save_pretrained(base / "mask_tokenizer")
    (base / "extra").mkdir()
    (base / "extra" / "notes.txt").write_text("kept")
    for state in ("optimizer.pt", "trainer_state.json"):
        (base / state).write_text("state")
        (folder / state).write_text("state")
    (base / "checkpoint-3").mkdir()
    (folder / "mask_tokenizer" / "calibration.json").write_text("{}")
    split_adapter(folder, tmp_path / "out", str(base))
    new_base, plain = tmp_path / "out" / "base", tmp_path / "out" / "adapter"
    states = {"optimizer.pt", "trainer_state.json"}
    expected = {*list_files(base), "mask_tokenizer/calibration.json"} - states
    assert set(list_files(new_base)) == expected
    for name in ("config.json", "tokenizer.json", "processor_config.json", "extra/notes.txt"):
        assert (new_base / name).read_bytes() == (base / name).read_bytes()
    trained, kept = (MaskTokenizer.from_pretrained(each / "mask_tokenizer") for each in (folder, new_base))
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in trained.state_dict().items())
    assert set(list_files(plain)) == set(list_files(folder)) - states - {"README.md"}
    assert json.loads((plain / "args.json").read_text())["model"] == str(new_base)
    config = json.loads((plain / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(new_base) and config["trainable_token_indices"] is None


def test_command_prints_the_folder_and_replaces_only_its_own_files_with_force(himtok, adapter, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = himtok("split-adapter", adapter.folder, out)
    assert status == 0 and printed.strip() == str(out)
    (out / "mine.txt").write_text("kept")
    status, _, error = himtok("split-adapter", adapter.folder, out)
    assert status == 2 and "is not empty; pass --force" in error
    assert himtok("split-adapter", adapter.folder, out, "--force")[0] == 0
    assert (out / "mine.txt").exists()
    (out / "base" / "other.txt").write_text("another's")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for force in ((), ("--force",)):
        status, _, error = himtok("split-adapter", adapter.folder, out, *force)
        assert status == 2 and "got base/other.txt, which no earlier `himtok split-adapter` has written" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_interrupted_run_leaves_nothing_behind(adapter, tmp_path, monkeypatch):
    from himtok_plugin.adapters import split

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(split, "_write_plain_adapter", stop)
    with pytest.raises(KeyboardInterrupt):
        split_adapter(adapter.folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def broken(adapter, tmp_path):
    """Copies of the adapter and its base, to be broken; the adapter names its base."""
    base, folder = (shutil.copytree(each, tmp_path / each.name) for each in (adapter.base, adapter.folder))
    (folder / "args.json").write_text(json.dumps({"model": str(base)}))
    return base, folder


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def store_as_pickle(path):
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def change_weights(path, change):
    """Replace every tensor by `change(key, tensor)`; None leaves it out."""
    changed = {key: change(key, value) for key, value in load_file(path).items()}
    save_file({key: value for key, value in changed.items() if value is not None}, path)


def is_trained(key):
    return "trainable_tokens" in key


def is_embedding(key):
    return key.endswith("embed_tokens.weight")


CASES = {
    "not an adapter": (
        lambda base, folder: (folder / "adapter_config.json").unlink(),
        r"adapter: got '.*', expected a folder with adapter_config.json",
    ),
    "no weights": (
        lambda base, folder: (folder / "adapter_model.safetensors").unlink(),
        r"adapter: got '.*', expected a folder with adapter_model.safetensors",
    ),
    "cut adapter": (
        lambda base, folder: truncate(folder / "adapter_model.safetensors"),
        r"adapter_model.safetensors: got a file that is cut off after [\d,]+ of [\d,]+ bytes, expected a safetensors",
    ),
    "cut base": (
        lambda base, folder: truncate(base / "model.safetensors"),
        r"model.safetensors: got a file that is cut off after [\d,]+ of [\d,]+ bytes, expected a safetensors",
    ),
    "no trained embeddings": (
        lambda base, folder: change_weights(
            folder / "adapter_model.safetensors", lambda key, value: None if is_trained(key) else value
        ),
        r"which has no trained token embeddings, expected some to split",
    ),
    "DoRA": (
        lambda base, folder: change_config(folder, use_dora=True),
        r"with DoRA, expected a plain LoRA .* `swift export --plugin himtok --adapters .* --merge_lora true`",
    ),
    "saved modules": (
        lambda base, folder: change_config(folder, modules_to_save=["norm"]),
        r"with modules_to_save \['norm'\], expected a plain LoRA",
    ),
    "missing ids": (
        lambda base, folder: change_config(folder, trainable_token_indices={"other": [1]}),
        r"trainable_token_indices: got no ids of model.language_model.embed_tokens, expected 14",
    ),
    "other number of ids": (
        lambda base, folder: change_config(folder, trainable_token_indices=[1, 2]),
        r"trainable_token_indices: got 2 ids of .*, expected 14, one for each embedding",
    ),
    "ids beyond the base": (
        lambda base, folder: (
            change_config(folder, trainable_token_indices=list(range(9000, 9014))),
            shutil.rmtree(folder / "mask_tokenizer"),
        ),
        r"got \d+ token embeddings, expected more than 9013",
    ),
    "no base": (
        lambda base, folder: shutil.rmtree(base) or change_config(folder, base_model_name_or_path=None),
        r"base model of .*: got '.*', expected an existing folder: pass --base DIR",
    ),
    "base of another width": (
        lambda base, folder: change_weights(
            base / "model.safetensors", lambda key, value: value[:, :8].clone() if is_embedding(key) else value
        ),
        r"embed_tokens.weight: got shape \[\d+, 8\], expected width 32",
    ),
    "quantized base": (
        lambda base, folder: change_weights(
            base / "model.safetensors", lambda key, value: value.byte() if is_embedding(key) else value
        ),
        r"embed_tokens.weight: got dtype U8, expected one of F64",
    ),
    "base without embeddings": (
        lambda base, folder: change_weights(
            base / "model.safetensors", lambda key, value: None if is_embedding(key) else value
        ),
        r"model.language_model.embed_tokens: got no tensor of this layer",
    ),
    "base in another format": (
        lambda base, folder: store_as_pickle(base / "model.safetensors"),
        r"no model.safetensors or model.safetensors.index.json, expected a model with safetensors weights",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(himtok, broken, tmp_path, case):
    base, folder = broken
    spoil, message = CASES[case]
    spoil(base, folder)
    status, printed, error = himtok("split-adapter", folder, tmp_path / "out")
    assert status == 2 and not printed and len(error.strip().splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_output_that_would_replace_what_is_read_is_refused(himtok, broken, tmp_path):
    base, folder = broken
    shutil.move(folder, tmp_path / "out" / "adapter")
    status, _, error = himtok("split-adapter", tmp_path / "out" / "adapter", tmp_path / "out", "--force")
    assert status == 2 and "would be replaced, expected another folder" in error
    status, _, error = himtok("split-adapter", tmp_path / "out" / "adapter", base / "out")
    assert status == 2 and "is in the base model's folder" in error


@pytest.mark.parametrize("has_mask_tokens", [True, False], ids=["mask_tokens", "no_mask_tokens"])
def test_base_whose_mask_tokens_have_other_ids_is_refused(adapter, tmp_path, has_mask_tokens):
    other = build_tiny_internvl(tmp_path / "other", TEXTS, "nano")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["another"])
    if has_mask_tokens:
        extend_tokenizer(tokenizer, CODES)
    tokenizer.save_pretrained(other)
    first, last = adapter.ids[0], adapter.ids[-1]
    message = rf"with mask tokens {first + 1} to {last + 1}, expected {first} to {last}, .* belongs to another"
    with pytest.raises(ValueError, match=message):
        split_adapter(adapter.folder, tmp_path / "out", str(other))


def test_ids_are_found_by_the_end_of_a_layers_name(broken):
    _, folder = broken
    layer = "model.language_model.embed_tokens"
    ids = AdapterFiles.open(folder).get_token_ids(layer)
    change_config(folder, trainable_token_indices={"embed_tokens": ids})
    assert AdapterFiles.open(folder).get_token_ids(layer) == ids
    change_config(folder, trainable_token_indices={"tokens": ids})
    with pytest.raises(ValueError, match="got no ids of"):
        AdapterFiles.open(folder).get_token_ids(layer)


def test_tensors_are_found_under_the_prefixes_of_other_versions():
    keys = ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight", "vision.embed.weight"]
    assert find_tensor("model.language_model.embed_tokens.weight", keys) == keys[0]
    assert find_tensor("lm_head.weight", keys) == keys[1]
    assert find_tensor("model.language_model.embed_in.weight", keys) is None
    twice = ["thinker.model.embed_tokens.weight", "talker.model.embed_tokens.weight"]
    assert find_tensor("model.embed_tokens.weight", twice) is None
    assert find_tensor("thinker.model.embed_tokens.weight", twice) == twice[0]


def test_split_base_loads_with_plain_transformers(adapter, tmp_path):
    split_adapter(adapter.folder, tmp_path / "out")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "base", output_loading_info=True)
    assert not any(report.values()) and len(model.get_input_embeddings().weight) > max(adapter.ids)
