"""Which tensors of an InternVL chat model become which of transformers' InternVL.

Contract: `chat_layout(config)` lists a rule for every tensor that the configuration calls for, with its shape, so that
missing and left-over keys can be told before a weight is read. A rule's `split` is arithmetic on one tensor, valid on
the meta device too. Names are those of released InternVL-hf files, which transformers and vLLM read. Does not know
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .chat_config import INTERNLM2, llm_architecture

EMBEDDINGS = "language_model.model.embed_tokens.weight"  # in transformers' InternVL


def _whole(tensor: Tensor) -> Sequence[Tensor]:
    return (tensor,)


@dataclass(frozen=True)
class Rule:
    """One tensor and what becomes of it.

    Attributes:
        source: its key in the chat model.
        shape: that the configuration calls for.
        targets: keys in transformers' InternVL; none for a tied output head.
        split: the tensor -> as many tensors as targets.
        equals: key of the tensor that this one has to equal, and that stands for both; it may then be absent.
    """

    source: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] = _whole
    equals: str | None = None


def chat_layout(config: Mapping[str, Any]) -> list[Rule]:
    """Rules for all tensors of the chat model, mask tokenizer aside."""
    return [*_vision(config["vision_config"]), *_projector(config), *_language_model(config)]


def split_grouped_qkv(tensor: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """InternLM2's fused projection taken apart.

    Its rows come in `kv_heads` groups: the heads / kv_heads query heads that share a key, that key, its value.

    Args:
        tensor: ((heads + 2 * kv_heads) * head width, ...), a weight or a bias.
        heads, kv_heads: query heads, and key and value heads.
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


def _rules(source: str, target: str, width_in: int, width_out: int, bias: bool = True) -> Iterator[Rule]:
    """A linear layer (width_out, width_in), or with width_in 0 a norm (width_out,)."""
    shape = (width_out, width_in) if width_in else (width_out,)
    yield Rule(f"{source}.weight", shape, (f"{target}.weight",))
    if bias:
        yield Rule(f"{source}.bias", (width_out,), (f"{target}.bias",))


def _vision(vision: Mapping[str, Any]) -> Iterator[Rule]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    source, target = "vision_model.embeddings", "vision_tower.embeddings"
    yield Rule(f"{source}.class_embedding", (1, 1, width), (f"{target}.cls_token",))
    yield Rule(f"{source}.position_embedding", (1, patches + 1, width), (f"{target}.position_embeddings",))
    projection = f"{target}.patch_embeddings.projection"
    shape = (width, vision.get("num_channels", 3), patch, patch)
    yield Rule(f"{source}.patch_embedding.weight", shape, (f"{projection}.weight",))
    yield Rule(f"{source}.patch_embedding.bias", (width,), (f"{projection}.bias",))
    norm_has_bias = vision.get("norm_type", "rms_norm") == "layer_norm"
    for i in range(vision["num_hidden_layers"]):
        source, target = f"vision_model.encoder.layers.{i}", f"vision_tower.encoder.layer.{i}"
        for n in (1, 2):
            yield Rule(f"{source}.ls{n}", (width,), (f"{target}.lambda_{n}",))
        yield from _rules(f"{source}.norm1", f"{target}.layernorm_before", 0, width, bias=norm_has_bias)
        yield from _rules(f"{source}.norm2", f"{target}.layernorm_after", 0, width, bias=norm_has_bias)
        kinds = [("weight", (3 * width, width)), *([("bias", (3 * width,))] if vision.get("qkv_bias") else [])]
        for kind, shape in kinds:
            targets = tuple(f"{target}.attention.{name}_proj.{kind}" for name in "qkv")
            yield Rule(f"{source}.attn.qkv.{kind}", shape, targets, lambda tensor: tensor.chunk(3))
        yield from _rules(f"{source}.attn.proj", f"{target}.attention.projection_layer", width, width)
        if vision.get("qk_normalization", True):
            for name in ("q_norm", "k_norm"):
                yield from _rules(f"{source}.attn.{name}", f"{target}.attention.{name}", 0, width, bias=False)
        yield from _rules(f"{source}.mlp.fc1", f"{target}.mlp.fc1", width, inner)
        yield from _rules(f"{source}.mlp.fc2", f"{target}.mlp.fc2", inner, width)


def _projector(config: Mapping[str, Any]) -> Iterator[Rule]:
    folded = config["vision_config"]["hidden_size"] * int(1 / config.get("downsample_ratio", 0.5)) ** 2
    width = config["llm_config"]["hidden_size"]
    yield from _rules("mlp1.0", "multi_modal_projector.layer_norm", 0, folded)
    yield from _rules("mlp1.1", "multi_modal_projector.linear_1", folded, width)
    yield from _rules("mlp1.3", "multi_modal_projector.linear_2", width, width)


def _language_model(config: Mapping[str, Any]) -> Iterator[Rule]:
    llm = config["llm_config"]
    width, rows = llm["hidden_size"], llm["vocab_size"]
    is_internlm2 = llm_architecture(config) == INTERNLM2
    embeddings, head = ("tok_embeddings", "output") if is_internlm2 else ("embed_tokens", "lm_head")
    target = "language_model.model"
    embeddings = f"{target}.{embeddings}.weight"
    yield Rule(embeddings, (rows, width), (EMBEDDINGS,))
    tied = llm.get("tie_word_embeddings", False)
    yield Rule(
        f"language_model.{head}.weight",
        (rows, width),
        () if tied else ("language_model.lm_head.weight",),
        equals=embeddings if tied else None,
    )
    yield from _rules(f"{target}.norm", f"{target}.norm", 0, width, bias=False)
    layer = _internlm2_layer if is_internlm2 else _qwen2_layer
    for i in range(llm["num_hidden_layers"]):
        yield from layer(f"{target}.layers.{i}", llm)


def _internlm2_layer(layer: str, llm: Mapping[str, Any]) -> Iterator[Rule]:
    width, inner, heads = llm["hidden_size"], llm["intermediate_size"], llm["num_attention_heads"]
    kv_heads = llm.get("num_key_value_heads") or heads
    bias = llm.get("bias", False)
    rows = (heads + 2 * kv_heads) * (width // heads)
    for kind, shape in [("weight", (rows, width)), *([("bias", (rows,))] if bias else [])]:
        targets = tuple(f"{layer}.self_attn.{name}_proj.{kind}" for name in "qkv")
        yield Rule(
            f"{layer}.attention.wqkv.{kind}", shape, targets, lambda tensor: split_grouped_qkv(tensor, heads, kv_heads)
        )
    yield from _rules(f"{layer}.attention.wo", f"{layer}.self_attn.o_proj", width, width, bias=bias)
    yield from _rules(f"{layer}.feed_forward.w1", f"{layer}.mlp.gate_proj", width, inner, bias=False)
    yield from _rules(f"{layer}.feed_forward.w3", f"{layer}.mlp.up_proj", width, inner, bias=False)
    yield from _rules(f"{layer}.feed_forward.w2", f"{layer}.mlp.down_proj", inner, width, bias=False)
    yield from _rules(f"{layer}.attention_norm", f"{layer}.input_layernorm", 0, width, bias=False)
    yield from _rules(f"{layer}.ffn_norm", f"{layer}.post_attention_layernorm", 0, width, bias=False)


def _qwen2_layer(layer: str, llm: Mapping[str, Any]) -> Iterator[Rule]:
    """The same names on both sides."""
    width, inner, heads = llm["hidden_size"], llm["intermediate_size"], llm["num_attention_heads"]
    kv_width = (llm.get("num_key_value_heads") or heads) * (width // heads)
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    for name, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
        yield from _rules(f"{attention}.{name}_proj", f"{attention}.{name}_proj", width, rows)
    yield from _rules(f"{attention}.o_proj", f"{attention}.o_proj", width, width, bias=False)
    for name, (width_in, width_out) in {
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }.items():
        yield from _rules(f"{mlp}.{name}", f"{mlp}.{name}", width_in, width_out, bias=False)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield from _rules(f"{layer}.{name}", f"{layer}.{name}", 0, width, bias=False)
