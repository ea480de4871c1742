"""The files of a PEFT adapter: its configuration, the header of its weights, and what vLLM cannot load of it.

`AdapterFiles.open` reads a folder. The weights stay on disk, and nothing heavy is imported.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .json_files import read_json_object
from .safetensors_files import TensorHeader, read_safetensors_header

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of all keys in an adapter's weights; a module's name in the base model follows
TRAINED_EMBEDDINGS_KEY = "token_adapter.trainable_tokens_delta"  # PEFT's name; it holds the embeddings, no difference

PLAIN_BASE, PLAIN_ADAPTER = "base", "adapter"  # folders that `himtok split-adapter` writes

# Fields of PEFT's LoraConfig that vLLM refuses if they are set, by the way they are called. From vllm/lora/
# peft_helper.py of vLLM 0.32; it ignores other fields.
_VLLM_REFUSES = {
    "use_dora": "DoRA",
    "lora_bias": "biases of LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
# Values of init_lora_weights that leave the base model's weights as they are, from the same file.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


def merge_command(adapter: str | Path) -> str:
    """The command that merges an adapter into its base model, for error messages."""
    return f"`swift export --plugin himtok --adapters {shlex.quote(str(adapter))} --merge_lora true`"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's folder.

    Attributes:
        folder: the folder.
        config: its adapter_config.json.
        tensors: headers of adapter_model.safetensors, by key; empty if there is no such file.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]

    @classmethod
    def open(cls, folder: str | Path) -> AdapterFiles:
        """Read an adapter's configuration and the header of its weights.

        Raises:
            ValueError: the folder has no adapter_config.json, or a file is truncated.
        """
        folder = Path(folder)
        if not (folder / ADAPTER_CONFIG_FILE).is_file():
            raise ValueError(f"adapter: got {str(folder)!r}, expected a folder with {ADAPTER_CONFIG_FILE}")
        config = read_json_object(folder / ADAPTER_CONFIG_FILE)
        weights = folder / ADAPTER_WEIGHTS_FILE
        return cls(folder, config, read_safetensors_header(weights) if weights.is_file() else {})

    def list_trained_embeddings(self) -> dict[str, str]:
        """Return the embedding layers with trained tokens: name in the base model -> key of the embeddings.

        Tied layers are one.
        """
        ending = f".{TRAINED_EMBEDDINGS_KEY}"
        found = (key for key in self.tensors if key.endswith(ending))
        return {key.removeprefix(PEFT_PREFIX).removesuffix(ending): key for key in found}

    def has_trained_embeddings(self) -> bool:
        """Whether the adapter has embeddings of single tokens, by its configuration or by its weights."""
        return bool(self.config.get("trainable_token_indices") or self.list_trained_embeddings())

    def get_token_ids(self, layer: str) -> list[int]:
        """Return the ids of the tokens that are trained in a layer of `list_trained_embeddings`.

        Raises:
            ValueError: the configuration has no ids of this layer, or their number is not that of the embeddings.
        """
        indices = self.config.get("trainable_token_indices")
        if isinstance(indices, Mapping):  # PEFT accepts the end of a layer's name
            indices = next((ids for name, ids in indices.items() if f".{layer}".endswith(f".{name}")), None)
        count = self.tensors[self.list_trained_embeddings()[layer]].shape[0]
        if not isinstance(indices, list) or len(indices) != count or len(set(indices)) != count:
            got = f"{len(indices)} ids" if isinstance(indices, list) else "no ids"
            raise ValueError(
                f"{self.folder / ADAPTER_CONFIG_FILE}: trainable_token_indices: got {got} of {layer}, "
                f"expected {count}, one for each embedding in {ADAPTER_WEIGHTS_FILE}"
            )
        return indices

    def get_rank(self) -> int:
        """Return the largest rank of its LoRA layers, 0 if it has none."""
        return max((header.shape[0] for key, header in self.tensors.items() if ".lora_A." in key), default=0)

    def list_vllm_obstacles(self, towers: Iterable[str] = ()) -> list[str]:
        """Return what vLLM cannot load, other than trained token embeddings; empty for a plain LoRA.

        Args:
            towers: names of modules outside the language model. vLLM loads a LoRA of such a module but ignores it.
        """
        kind = self.config.get("peft_type", "LORA")
        if kind != "LORA":
            return [f"peft_type {kind}"]
        found = [name for field, name in _VLLM_REFUSES.items() if self.config.get(field)]
        if saved := self.config.get("modules_to_save"):
            found.append(f"modules_to_save {saved}")
        if (bias := self.config.get("bias", "none")) != "none":
            found.append(f"bias {bias!r}")
        start = self.config.get("init_lora_weights")
        if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
            found.append(f"init_lora_weights {start!r}")
        outside = [tower for tower in towers if any(key.startswith(f"{PEFT_PREFIX}{tower}.") for key in self.tensors)]
        if outside:
            found.append(f"LoRA of {' and '.join(outside)}")
        return found
