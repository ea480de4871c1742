"""Splits an adapter with trained token embeddings into a base model that has them, and a plain LoRA.

vLLM loads LoRA weights, but no trained token embeddings. `split_adapter` writes OUT/base, a copy of the base model with
the adapter's token embeddings, and OUT/adapter, the LoRA weights alone. Together they give the answers of the original
adapter, and several adapters of the kind can be trained on OUT/base later. Everything is checked before anything is
written, and both folders appear only when they are complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from himtok_plugin.checkpoints.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    PLAIN_ADAPTER,
    PLAIN_BASE,
    AdapterFiles,
    merge_command,
)
from himtok_plugin.checkpoints.json_files import read_json_object, read_optional_json_object
from himtok_plugin.checkpoints.model_folder import check_adapter_folder, check_model_folder
from himtok_plugin.checkpoints.safetensors_files import WeightsFiles, save_file
from himtok_plugin.files.output_folder import OutputFolder
from himtok_plugin.lmm.vocabulary import MaskVocabulary, extend_tokenizer
from himtok_plugin.mask_tokenizer import MaskTokenizerConfig
from himtok_plugin.mask_tokenizer.released_weights import download_from_hub
from himtok_plugin.resources import SIDECAR_FOLDER

from .trained_embeddings import EmbeddingChanges, ProgressCallback, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG_FILE, ARGUMENTS_FILE = "config.json", "args.json"
# Weights, which are written separately or are another form of the same, and states of a training run.
NOT_COPIED = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_config.json", "adapter_model.*"),
    *("consolidated*", "original", "*.gguf", "tf_model.h5", "flax_model.msgpack"),
    *("optimizer*", "scheduler.pt", "rng_state*", "trainer_state.json", "training_args.bin", "global_step*", "latest"),
    *("zero_to_fp32.py", "checkpoint-*", "*-checkpoint", "runs", ".*"),
)


def split_adapter(
    adapter: Path,
    out: Path,
    base: str | None = None,
    progress: ProgressCallback = lambda done, total: None,
    force: bool = True,
) -> None:
    """Write OUT/base and OUT/adapter, and replace those that an earlier split has written there.

    Args:
        adapter: folder of a LoRA adapter with trained token embeddings.
        out: folder to write.
        base: folder or hub id of the base model; None takes the one that the adapter names.
        progress: called with (files written, files in all) after each weights file of the base model.
        force: replace what an earlier split has written to `out`.
    Raises:
        ValueError: it is no such adapter, vLLM could not load its other weights either, the base model is not found or
            does not fit, a file is truncated, or `out` holds the adapter, the base model, or files of others.
    """
    files = AdapterFiles.open(adapter)
    _check_adapter(files)
    check_adapter_folder(adapter)
    base_folder = find_base_model(files, base)
    _check_sources_are_kept(out, adapter, base_folder)
    get_output_folder(out).check(force)
    check_model_folder(base_folder)
    weights = WeightsFiles.open(base_folder)
    tokenizer = _extend_base_tokenizer(files, base_folder)
    # A text tokenizer with unused ids (Phi-4) has ids beyond its size.
    num_tokens = 0 if tokenizer is None else max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    changes = EmbeddingChanges.find(files, weights, num_tokens)
    with get_output_folder(out).fill() as new:
        new_base, new_adapter = new / PLAIN_BASE, new / PLAIN_ADAPTER
        _copy_other_files(base_folder, new_base)
        write_weights(weights, changes, new_base, progress)
        if changes.num_after > changes.num_before:
            _set_vocabulary_size(new_base / CONFIG_FILE, changes.num_before, changes.num_after)
        if tokenizer is not None:
            tokenizer.save_pretrained(new_base)
        if (adapter / SIDECAR_FOLDER).is_dir():  # it may have trained the de-tokenizer
            shutil.rmtree(new_base / SIDECAR_FOLDER, ignore_errors=True)
            shutil.copytree(adapter / SIDECAR_FOLDER, new_base / SIDECAR_FOLDER)
        _write_plain_adapter(files, new_adapter, (out / PLAIN_BASE).resolve())


def get_output_folder(out: Path) -> OutputFolder:
    """Return the folder of a split adapter."""
    return OutputFolder(out, "himtok split-adapter", parts=(PLAIN_BASE, PLAIN_ADAPTER))


def find_base_model(adapter: AdapterFiles, base: str | None = None) -> Path:
    """Find the folder of an adapter's base model.

    Args:
        adapter: the adapter.
        base: folder or hub id; None takes what args.json or adapter_config.json names.
    Raises:
        ValueError: nothing is named, the folder does not exist and is no hub id, or it cannot be downloaded.
    """
    arguments = read_optional_json_object(adapter.folder / ARGUMENTS_FILE)
    named = [arguments.get("model"), adapter.config.get("base_model_name_or_path"), arguments.get("model_dir")]
    names = [base] if base else [name for name in named if isinstance(name, str) and name]
    folder = next((Path(name) for name in names if Path(name).is_dir()), None)
    if folder is not None:
        if not (folder / CONFIG_FILE).is_file():
            raise ValueError(f"base model: got {str(folder)!r}, expected a folder with {CONFIG_FILE}")
        return folder
    hub_id = next((name for name in names if not Path(name).is_absolute() and name.count("/") == 1), None)
    if hub_id is None:
        got = repr(names[0]) if names else "none"
        raise ValueError(f"base model of {adapter.folder}: got {got}, expected an existing folder: pass --base DIR")
    return download_from_hub(hub_id, "base model", ["*"])


def _check_adapter(adapter: AdapterFiles) -> None:
    """Refuse adapters that have nothing to split, or that would not be a plain LoRA afterwards."""
    folder = adapter.folder
    if not adapter.tensors:
        raise ValueError(f"adapter: got {str(folder)!r}, expected a folder with {ADAPTER_WEIGHTS_FILE}")
    if obstacles := adapter.list_vllm_obstacles():
        raise ValueError(
            f"adapter: got {str(folder)!r} with {', '.join(obstacles)}, expected a plain LoRA beside the trained token "
            f"embeddings: merge this one, {merge_command(folder)}"
        )
    if not adapter.list_trained_embeddings():
        raise ValueError(f"adapter: got {str(folder)!r}, which has no trained token embeddings, expected some to split")


def _check_sources_are_kept(out: Path, adapter: Path, base: Path) -> None:
    """Refuse an output folder whose parts are replaced although they hold what is read, or that would be copied."""
    if out.resolve().is_relative_to(base.resolve()):
        raise ValueError(f"out: got {str(out)!r}, which is in the base model's folder, expected another folder")
    for source in (adapter.resolve(), base.resolve()):
        for part in (out / PLAIN_BASE, out / PLAIN_ADAPTER):
            if source.is_relative_to(part.resolve()):
                raise ValueError(f"out: got {str(out)!r}, where {source} would be replaced, expected another folder")


def _extend_base_tokenizer(adapter: AdapterFiles, base: Path) -> PreTrainedTokenizerBase | None:
    """Return the base model's text tokenizer with mask tokens if it had none, else None.

    Adapters without a mask tokenizer were trained without this package, so their tokens are unknown.

    Raises:
        ValueError: the mask tokens have other ids than in the adapter's training.
    """
    sidecar = adapter.folder / SIDECAR_FOLDER
    if not sidecar.is_dir():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    codebook_size = MaskTokenizerConfig.from_pretrained(sidecar).codebook_size
    added = extend_tokenizer(tokenizer, codebook_size)
    expected = MaskVocabulary.of(tokenizer, codebook_size).ids()
    for layer in adapter.list_trained_embeddings():
        ids = adapter.get_token_ids(layer)
        if sorted(ids) != expected:
            raise ValueError(
                f"base model: got {str(base)!r} with mask tokens {expected[0]} to {expected[-1]}, expected {min(ids)} "
                f"to {max(ids)}, those of {adapter.folder}: it belongs to another base model"
            )
    return tokenizer if added else None


def _set_vocabulary_size(path: Path, before: int, after: int) -> None:
    """Set `vocab_size` of the language model in config.json."""
    config = read_json_object(path)

    def find(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if part.get("vocab_size") == before:
            yield part
        for inner in part.values():
            if isinstance(inner, dict):
                yield from find(inner)

    # transformers leaves out what has its default.
    for part in list(find(config)) or [config.get("text_config", config)]:
        part["vocab_size"] = after
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_plain_adapter(adapter: AdapterFiles, out: Path, base: Path) -> None:
    """Write an adapter without token embeddings, and with the path of its new base model."""
    from safetensors import safe_open

    _copy_other_files(adapter.folder, out)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's, which names the old base model
    trained = set(adapter.list_trained_embeddings().values())
    with safe_open(adapter.folder / ADAPTER_WEIGHTS_FILE, "pt") as file:
        lora = {key: file.get_tensor(key) for key in file.keys() if key not in trained}
        save_file(lora, out / ADAPTER_WEIGHTS_FILE, file.metadata())
    config = {**adapter.config, "trainable_token_indices": None, "base_model_name_or_path": str(base)}
    (out / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if (out / ARGUMENTS_FILE).is_file():
        arguments = read_json_object(out / ARGUMENTS_FILE) | {"model": str(base), "model_revision": None}
        if "model_dir" in arguments:
            arguments["model_dir"] = str(base)
        (out / ARGUMENTS_FILE).write_text(json.dumps(arguments, indent=2, ensure_ascii=False), encoding="utf-8")


def _copy_other_files(source: Path, out: Path) -> None:
    """Copy a checkpoint's files and folders except those of `NOT_COPIED`; the mask tokenizer is copied whole."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        if Path(folder).name == SIDECAR_FOLDER:
            return []
        return [name for name in names if any(fnmatch(name, pattern) for pattern in NOT_COPIED)]

    shutil.copytree(source, out, ignore=ignore, copy_function=shutil.copyfile)
