"""Refusal of adapters that an engine cannot load, or would silently ignore, before the engine starts.

Contract: `check_adapters` looks at the files of every adapter. vLLM reads them after it has loaded the model, and dies
of what it does not support. SGLang and LMDeploy get no adapters from ms-swift 4.6 at all.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from himtok_plugin.checkpoints.adapter_files import PLAIN_ADAPTER, PLAIN_BASE, AdapterFiles, merge_command

ENGINES_WITHOUT_ADAPTERS = ("sglang", "lmdeploy")  # SwiftInfer.get_infer_engine passes adapters to none of the two
TOWER_LORA = "enable_tower_connector_lora"  # in --vllm_engine_kwargs


def check_adapters(args: Any) -> None:
    """Check the adapters of a command that answers with vLLM, SGLang or LMDeploy; others pass.

    Args:
        args: ms-swift's arguments, after it has found the adapters' folders and the model's type.
    Raises:
        ValueError: the engine cannot load an adapter. The message says how to make one that it can.
    """
    backend = getattr(args, "infer_backend", None)
    if backend not in ("vllm", *ENGINES_WITHOUT_ADAPTERS):
        return
    # `--merge_lora true` merges the adapters without a name first. It cannot merge those of `--adapters name=DIR`.
    unnamed = [] if getattr(args, "merge_lora", False) else list(getattr(args, "adapters", None) or [])
    folders = [*unnamed, *(getattr(args, "adapter_mapping", None) or {}).values()]
    if folders and backend in ENGINES_WITHOUT_ADAPTERS:
        raise ValueError(
            f"adapters: got {folders} with --infer_backend {backend}, to which ms-swift passes none, expected a merged "
            f"checkpoint: {merge_command(folders[0])}"
        )
    if len(unnamed) > 1:
        raise ValueError(
            f"adapters: got {unnamed} with --infer_backend vllm, which answers with the first one, expected one, or "
            "names: --adapters NAME=DIR"
        )
    for folder in folders:
        _check_for_vllm(folder, args)


def _check_for_vllm(folder: str, args: Any) -> None:
    adapter = AdapterFiles.open(folder)
    expected = f"which vLLM does not support, expected a merged checkpoint: {merge_command(folder)}"
    if obstacles := adapter.list_vllm_obstacles(_list_towers(args)):
        raise ValueError(f"adapters: got {folder!r} with {', '.join(obstacles)}, {expected}")
    if adapter.has_trained_embeddings():
        raise ValueError(
            f"adapters: got {folder!r} with trained token embeddings, {expected}; or a plain LoRA: "
            f"`himtok split-adapter {shlex.quote(folder)} OUT`, then --model OUT/{PLAIN_BASE} --adapters "
            f"OUT/{PLAIN_ADAPTER}"
        )
    limit = getattr(args, "vllm_max_lora_rank", None)
    if limit is not None and adapter.get_rank() > limit:
        raise ValueError(
            f"vllm_max_lora_rank: got {limit}, expected at least {adapter.get_rank()}, the rank of {folder!r}"
        )


def _list_towers(args: Any) -> Iterable[str]:
    """Modules outside the language model, whose LoRA vLLM ignores; none if it has been told to apply them."""
    from swift.utils import json_parse_to_dict

    # ms-swift itself parses them later.
    if json_parse_to_dict(getattr(args, "vllm_engine_kwargs", None) or {}).get(TOWER_LORA):
        return []
    arch = getattr(getattr(args, "model_meta", None), "model_arch", None)
    return [name for kind in ("vision_tower", "aligner", "generator") for name in getattr(arch, kind, None) or []]
