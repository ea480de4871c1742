"""Maps the keys of an InternVL chat model to those of transformers' InternVL.

`list_tensor_rules(config)` returns one rule, with key and shape, for every tensor of that configuration, so that
missing and unknown keys are found before any weight is read. Target keys are those of the released InternVL-hf files,
which transformers and vLLM load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .chat_config import INTERNLM2, get_llm_architecture

EMBEDDINGS = "language_model.model.embed_tokens.weight"  # in transformers' InternVL


def _keep_whole(tensor: Tensor) -> Sequence[Tensor]:
    return (tensor,)


@dataclass(frozen=True)
class TensorRule:
    """One tensor of the chat model and the tensors that it is converted to.

    Attributes:
        source: key in the chat model.
        shape: expected shape.
        targets: keys in transformers' InternVL; empty for a tied output head.
        split: converts the tensor to one tensor per target, of the same dtype; may return views.
        equals: key of the tensor that this one is tied to. The checkpoint may then lack it; if it has it, both have to
            be equal.
    """

    source: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] = _keep_whole
    equals: str | None = None


def list_tensor_rules(config: Mapping[str, Any]) -> list[TensorRule]:
    """Return the rules for all tensors of the chat model, without those of the mask tokenizer."""
    return [
        *_vision_rules(config["vision_config"]),
        *_projector_rules(config),
        *_language_model_rules(config),
    ]


def split_grouped_qkv(tensor: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split InternLM2's fused projection into query, key and value.

    Its first dimension consists of `kv_heads` groups. A group holds the heads / kv_heads query heads that share a key,
    then that key, then its value.

    Args:
        tensor: ((heads + 2 * kv_heads) * head width, ...), a weight or a bias.
        heads: number of query heads.
        kv_heads: number of key heads and of value heads.
    Returns:
        q (heads * head width, ...), k and v (kv_heads * head width, ...).
    """
    rest = tensor.shape[1:]
    groups = tensor.reshape(kv_heads, heads // kv_heads + 2, -1, *rest)
    return (
        groups[:, :-2].reshape(-1, *rest),
        groups[:, -2].reshape(-1, *rest),
        groups[:, -1].reshape(-1, *rest),
    )


def _layer_rules(source: str, target: str, width_in: int, width_out: int, bias: bool = True) -> Iterator[TensorRule]:
    """Yield the rules of a linear layer (width_out, width_in), or of a norm (width_out,) if width_in is 0."""
    shape = (width_out, width_in) if width_in else (width_out,)
    yield TensorRule(f"{source}.weight", shape, (f"{target}.weight",))
    if bias:
        yield TensorRule(f"{source}.bias", (width_out,), (f"{target}.bias",))


def _vision_rules(vision: Mapping[str, Any]) -> Iterator[TensorRule]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    source, target = "vision_model.embeddings", "vision_tower.embeddings"
    yield TensorRule(f"{source}.class_embedding", (1, 1, width), (f"{target}.cls_token",))
    yield TensorRule(f"{source}.position_embedding", (1, patches + 1, width), (f"{target}.position_embeddings",))
    projection = f"{target}.patch_embeddings.projection"
    shape = (width, vision.get("num_channels", 3), patch, patch)
    yield TensorRule(f"{source}.patch_embedding.weight", shape, (f"{projection}.weight",))
    yield TensorRule(f"{source}.patch_embedding.bias", (width,), (f"{projection}.bias",))
    norm_has_bias = vision.get("norm_type", "rms_norm") == "layer_norm"
    for i in range(vision["num_hidden_layers"]):
        source, target = f"vision_model.encoder.layers.{i}", f"vision_tower.encoder.layer.{i}"
        for n in (1, 2):
            yield TensorRule(f"{source}.ls{n}", (width,), (f"{target}.lambda_{n}",))
        yield from _layer_rules(f"{source}.norm1", f"{target}.layernorm_before", 0, width, bias=norm_has_bias)
        yield from _layer_rules(f"{source}.norm2", f"{target}.layernorm_after", 0, width, bias=norm_has_bias)
        kinds = [("weight", (3 * width, width)), *([("bias", (3 * width,))] if vision.get("qkv_bias") else [])]
        for kind, shape in kinds:
            targets = tuple(f"{target}.attention.{name}_proj.{kind}" for name in "qkv")
            yield TensorRule(f"{source}.attn.qkv.{kind}", shape, targets, lambda tensor: tensor.chunk(3))
        yield from _layer_rules(f"{source}.attn.proj", f"{target}.attention.projection_layer", width, width)
        if vision.get("qk_normalization", True):
            for name in ("q_norm", "k_norm"):
                yield from _layer_rules(f"{source}.attn.{name}", f"{target}.attention.{name}", 0, width, bias=False)
        yield from _layer_rules(f"{source}.mlp.fc1", f"{target}.mlp.fc1", width, inner)
        yield from _layer_rules(f"{source}.mlp.fc2", f"{target}.mlp.fc2", inner, width)


def _projector_rules(config: Mapping[str, Any]) -> Iterator[TensorRule]:
    folded = config["vision_config"]["hidden_size"] * int(1 / config.get("downsample_ratio", 0.5)) ** 2
    width = config["llm_config"]["hidden_size"]
    yield from _layer_rules("mlp1.0", "multi_modal_projector.layer_norm", 0, folded)
    yield from _layer_rules("mlp1.1", "multi_modal_projector.linear_1", folded, width)
    yield from _layer_rules("mlp1.3", "multi_modal_projector.linear_2", width, width)


def _language_model_rules(config: Mapping[str, Any]) -> Iterator[TensorRule]:
    llm = config["llm_config"]
    shape = (llm["vocab_size"], llm["hidden_size"])
    is_internlm2 = get_llm_architecture(config) == INTERNLM2
    name, head = ("tok_embeddings", "output") if is_internlm2 else ("embed_tokens", "lm_head")
    target = "language_model.model"
    embeddings = f"{target}.{name}.weight"
    yield TensorRule(embeddings, shape, (EMBEDDINGS,))
    tied = llm.get("tie_word_embeddings", False)
    yield TensorRule(
        f"language_model.{head}.weight",
        shape,
        () if tied else ("language_model.lm_head.weight",),
        equals=embeddings if tied else None,
    )
    yield from _layer_rules(f"{target}.norm", f"{target}.norm", 0, llm["hidden_size"], bias=False)
    list_layer_rules = _internlm2_layer_rules if is_internlm2 else _qwen2_layer_rules
    for i in range(llm["num_hidden_layers"]):
        yield from list_layer_rules(f"{target}.layers.{i}", llm)


def _internlm2_layer_rules(layer: str, llm: Mapping[str, Any]) -> Iterator[TensorRule]:
    """Yield the rules of a layer of InternLM2, which becomes one of Llama."""
    width, inner, heads = llm["hidden_size"], llm["intermediate_size"], llm["num_attention_heads"]
    kv_heads = llm.get("num_key_value_heads") or heads
    bias = llm.get("bias", False)
    rows = (heads + 2 * kv_heads) * (width // heads)
    for kind, shape in [("weight", (rows, width)), *([("bias", (rows,))] if bias else [])]:
        targets = tuple(f"{layer}.self_attn.{name}_proj.{kind}" for name in "qkv")
        yield TensorRule(
            f"{layer}.attention.wqkv.{kind}", shape, targets, lambda tensor: split_grouped_qkv(tensor, heads, kv_heads)
        )
    yield from _layer_rules(f"{layer}.attention.wo", f"{layer}.self_attn.o_proj", width, width, bias=bias)
    yield from _layer_rules(f"{layer}.feed_forward.w1", f"{layer}.mlp.gate_proj", width, inner, bias=False)
    yield from _layer_rules(f"{layer}.feed_forward.w3", f"{layer}.mlp.up_proj", width, inner, bias=False)
    yield from _layer_rules(f"{layer}.feed_forward.w2", f"{layer}.mlp.down_proj", inner, width, bias=False)
    yield from _layer_rules(f"{layer}.attention_norm", f"{layer}.input_layernorm", 0, width, bias=False)
    yield from _layer_rules(f"{layer}.ffn_norm", f"{layer}.post_attention_layernorm", 0, width, bias=False)


def _qwen2_layer_rules(layer: str, llm: Mapping[str, Any]) -> Iterator[TensorRule]:
    """Yield the rules of a layer of Qwen2, whose keys stay as they are."""
    width, inner, heads = llm["hidden_size"], llm["intermediate_size"], llm["num_attention_heads"]
    kv_width = (llm.get("num_key_value_heads") or heads) * (width // heads)
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    for name, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
        yield from _layer_rules(f"{attention}.{name}_proj", f"{attention}.{name}_proj", width, rows)
    yield from _layer_rules(f"{attention}.o_proj", f"{attention}.o_proj", width, width, bias=False)
    for name, (width_in, width_out) in {
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }.items():
        yield from _layer_rules(f"{mlp}.{name}", f"{mlp}.{name}", width_in, width_out, bias=False)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield from _layer_rules(f"{layer}.{name}", f"{layer}.{name}", 0, width, bias=False)
