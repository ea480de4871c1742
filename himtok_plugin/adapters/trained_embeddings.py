"""Writes the trained token embeddings of an adapter into a copy of its base model's weights.

`EmbeddingChanges.find` maps the adapter's embeddings to tensors of the base model, from headers alone. `write_weights`
copies the weights file by file, so that a model takes about as much memory as one of its files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from himtok_plugin.checkpoints.adapter_files import ADAPTER_WEIGHTS_FILE, AdapterFiles
from himtok_plugin.checkpoints.json_files import read_json_object
from himtok_plugin.checkpoints.safetensors_files import INDEX_FILE, WeightsFiles, save_file
from himtok_plugin.lmm.vocabulary import PER_LAYER_EMBEDDING, round_up_vocabulary

HEAD = "lm_head.weight"  # end of the key of output embeddings, which can be stored although they are tied
FLOATING_DTYPES = ("F64", "F32", "BF16", "F16")

ProgressCallback = Callable[[int, int], None]  # called with (files written, files in all)


@dataclass(frozen=True)
class EmbeddingChanges:
    """Which token embeddings change in which tensors of a base model.

    Attributes:
        adapter: the adapter that has them.
        sources: key in the base model -> (key in the adapter, ids of the tokens).
        num_before, num_after: number of token embeddings before and after the change. Input embeddings can have
            additional ones (Llama 3.2 Vision), which they keep.
    """

    adapter: AdapterFiles
    sources: dict[str, tuple[str, list[int]]]
    num_before: int
    num_after: int

    @classmethod
    def find(cls, adapter: AdapterFiles, weights: WeightsFiles, num_tokens: int) -> EmbeddingChanges:
        """Find the tensors of the trained embedding layers.

        Args:
            adapter: an adapter with trained token embeddings.
            weights: those of its base model.
            num_tokens: number of tokens of the text tokenizer, if it has been extended; else 0.

        Raises:
            ValueError: a layer has no tensor in the base model, or one of another width, or a quantized one; or the
                vocabulary would have to grow in a layer that the adapter does not have.
        """
        tensors = weights.tensors()
        sources: dict[str, tuple[str, list[int]]] = {}
        for layer, key in adapter.list_trained_embeddings().items():
            found = find_tensor(f"{layer}.weight", tensors)
            where = f"{weights.folder}: {found or layer}"
            if found is None:
                raise ValueError(f"{where}: got no tensor of this layer, expected the base model of {adapter.folder}")
            shape, dtype, width = tensors[found].shape, tensors[found].dtype, adapter.tensors[key].shape[-1]
            if len(shape) != 2 or shape[1] != width:
                raise ValueError(f"{where}: got shape {list(shape)}, expected width {width}, that of {adapter.folder}")
            if dtype not in FLOATING_DTYPES:
                raise ValueError(f"{where}: got dtype {dtype}, expected one of {', '.join(FLOATING_DTYPES)}")
            sources[found] = key, adapter.get_token_ids(layer)
        sources |= _find_tied_heads(sources, weights)
        before = min(tensors[key].shape[0] for key in sources)
        highest = max(max(ids) for _, ids in sources.values())
        if highest >= max(num_tokens, before):
            raise ValueError(f"{weights.folder}: got {before} token embeddings, expected more than {highest}")
        if num_tokens <= before:
            return cls(adapter, sources, before, before)
        _check_all_can_grow(sources, weights)
        return cls(adapter, sources, before, round_up_vocabulary(num_tokens))

    def apply(self, key: str, weight: Tensor) -> Tensor:
        """Return a tensor of the base model with the trained embeddings.

        Args:
            key: its key, one of `sources`.
            weight: (vocabulary, hidden).
        Returns:
            The same with `num_after - num_before` more embeddings, in the same dtype. New ones that the adapter does
            not have are there for a round size; they are the mean of the old ones.
        """
        from safetensors import safe_open

        source, ids = self.sources[key]
        with safe_open(self.adapter.folder / ADAPTER_WEIGHTS_FILE, "pt") as file:
            trained = file.get_tensor(source)
        padding = weight.float().mean(0).to(weight.dtype).expand(self.num_after - self.num_before, -1)
        changed = torch.cat([weight, padding])
        changed[torch.tensor(ids)] = trained.to(weight.dtype)  # as PEFT casts them in a forward pass
        return changed


def find_tensor(name: str, keys: Iterable[str]) -> str | None:
    """Find the tensor of a module's parameter in a checkpoint.

    Checkpoints of several models have other prefixes than the modules of transformers, which maps one to the other when
    it loads them: `model.embed_tokens.weight` is `model.language_model.embed_tokens.weight` in Qwen2.5-VL.

    Returns:
        The key with the longest common end, which has at least the name of the layer in common; None if there is none,
        or more than one.
    """
    wanted = name.split(".")[::-1]

    def count_common(key: str) -> int:
        pairs = zip(wanted, key.split(".")[::-1], strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(wanted), key.count(".") + 1))

    counts = {key: count_common(key) for key in keys}
    most = max(counts.values(), default=0)
    best = [key for key, count in counts.items() if count == most]
    return name if name in best else best[0] if most >= 2 and len(best) == 1 else None


def write_weights(weights: WeightsFiles, changes: EmbeddingChanges, out: Path, progress: ProgressCallback) -> None:
    """Write a base model's weights with changed token embeddings, in the same files, and their index.

    Args:
        weights: those of the base model.
        changes: found in them.
        out: an existing folder.
        progress: called after each file.
    """
    grown = parameters = 0
    for number, (file, tensors) in enumerate(weights.files.items(), 1):
        changed = changes.sources.keys() & tensors.keys()
        if changed:
            grown_by = _write_changed_file(file, tensors, changes, out / file.name)
            grown, parameters = grown + grown_by[0], parameters + grown_by[1]
        else:
            shutil.copyfile(file, out / file.name)
        progress(number, len(weights.files))
    if weights.is_sharded:
        index = read_json_object(weights.folder / INDEX_FILE)
        for name, added in (("total_size", grown), ("total_parameters", parameters)):
            if name in index.get("metadata", {}):
                index["metadata"][name] += added
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_changed_file(file: Path, tensors: Iterable[str], changes: EmbeddingChanges, out: Path) -> tuple[int, int]:
    """Write one file with its changes; return by how many bytes and how many parameters it has grown."""
    from safetensors import safe_open

    grown = parameters = 0
    with safe_open(file, "pt") as opened:
        written = {key: opened.get_tensor(key) for key in tensors}
        for key in changes.sources.keys() & written.keys():
            before = written[key]
            written[key] = changes.apply(key, before)
            grown += written[key].nbytes - before.nbytes
            parameters += written[key].numel() - before.numel()
        save_file(written, out, opened.metadata())
    return grown, parameters


def _find_tied_heads(
    sources: dict[str, tuple[str, list[int]]], weights: WeightsFiles
) -> dict[str, tuple[str, list[int]]]:
    """Return the sources of stored output embeddings that repeat the input embeddings of an adapter's single layer."""
    tensors = weights.tensors()
    if len(sources) != 1:
        return {}
    ((key, source),) = sources.items()
    heads = [k for k in tensors if k.endswith(HEAD) and k != key and tensors[k] == tensors[key]]
    return {head: source for head in heads if torch.equal(weights.load_tensor(head), weights.load_tensor(key))}


def _check_all_can_grow(sources: dict[str, tuple[str, list[int]]], weights: WeightsFiles) -> None:
    """Refuse a base model without mask tokens that has embedding layers which the adapter does not have."""
    others = [
        key
        for key in weights.tensors()
        if key not in sources and (key.endswith(HEAD) or key.endswith(f"{PER_LAYER_EMBEDDING}.weight"))
    ]
    if others:
        raise ValueError(
            f"{weights.folder}: got no mask tokens and {', '.join(others)}, of which the adapter has no embeddings, "
            "expected a base model with mask tokens, or `swift export --plugin himtok --merge_lora true`"
        )
