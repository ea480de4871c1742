"""Converts config.json of an InternVL chat model to transformers' `InternVLConfig`.

`build_internvl_config` keeps every setting that changes what the model computes, RoPE scaling included. `check_config`
rejects settings that transformers' InternVL does not support. InternLM2 becomes Llama, which computes the same once
key_mapping.py has rearranged the weights; Qwen2 stays Qwen2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import InternVLConfig

MODEL_TYPE, CONVERTED_MODEL_TYPE = "internvl_chat", "internvl"
INTERNLM2, QWEN2 = "InternLM2ForCausalLM", "Qwen2ForCausalLM"
# Architecture of the LLM in the chat model -> model type and architecture in transformers.
CONVERTED_LLMS = {INTERNLM2: ("llama", "LlamaForCausalLM"), QWEN2: ("qwen2", QWEN2)}
DEFAULT_ROPE_THETA = 10000.0  # the default of InternLM2 and of Qwen2
# Id of `<IMG_CONTEXT>` in the InternVL2.5 models with these LLMs; used only if no tokenizer file has the id.
IMAGE_TOKEN_IDS = {INTERNLM2: 92546, QWEN2: 151667}
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
REQUIRED_FIELDS = {
    "vision_config": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
    ),
    "llm_config": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
}
QWEN2_FIELDS = ("use_sliding_window", "sliding_window", "max_window_layers", "attention_dropout")
NORMS = ("layer_norm", "rms_norm")
SIZE, NUMBER, SWITCH, TEXT = "a positive integer", "a positive number", "true or false", "a string"
LAYER = "an integer, the number of a layer"
NORM = f"one of {NORMS}"
# Fields that the converted model computes with; a recent transformers validates those that are not listed.
OPTIONAL_FIELDS = {
    "select_layer": LAYER,
    "downsample_ratio": NUMBER,
    "dynamic_image_size": SWITCH,
    "use_thumbnail": SWITCH,
    "min_dynamic_patch": SIZE,
    "max_dynamic_patch": SIZE,
    "vision_config.num_channels": SIZE,
    "vision_config.hidden_act": TEXT,
    "vision_config.layer_norm_eps": NUMBER,
    "vision_config.norm_type": NORM,
    "vision_config.qkv_bias": SWITCH,
    "vision_config.qk_normalization": SWITCH,
    "llm_config.hidden_act": TEXT,
    "llm_config.rms_norm_eps": NUMBER,
    "llm_config.max_position_embeddings": SIZE,
    "llm_config.bias": SWITCH,
    "llm_config.tie_word_embeddings": SWITCH,
}
NULLABLE_FIELDS = {  # null means the same as a missing field
    "force_image_size": SIZE,
    "template": TEXT,
    "llm_config.num_key_value_heads": SIZE,
    "llm_config.rope_theta": NUMBER,
}
SCALED_ROPE = ("dynamic", "linear")  # the two that InternLM2 has


def check_config(config: Mapping[str, Any]) -> None:
    """Reject a configuration that cannot be converted, whatever the weights are.

    Raises:
        ValueError: a size is missing or not a positive integer, sizes contradict each other, or transformers' InternVL
            does not have a setting.
    """
    for part, names in REQUIRED_FIELDS.items():
        wrong = {name: config[part].get(name) for name in names if not _is_valid(SIZE, config[part].get(name))}
        if wrong:
            raise ValueError(f"{part}: got {wrong}, expected positive integers")
    _check_optional_fields(config)
    _check_heads(config)
    architecture = get_llm_architecture(config)
    _build_rope_parameters(config["llm_config"], architecture)
    side, patch = get_tile_size(config), config["vision_config"]["patch_size"]
    patches = side // patch
    if not patches:
        raise ValueError(f"vision_config.patch_size: got {patch}, expected at most {side}, the side of a tile")
    expected = {
        # v1, a bug of the first InternVL, leaves the tokens transposed.
        "ps_version": (config.get("ps_version", "v1"), "v2"),
        "pad2square": (config.get("pad2square", False), False),
    }
    for name, (got, wanted) in expected.items():
        if got != wanted:
            raise ValueError(
                f"{name}: got {got!r}, expected {wanted!r}, the only value that transformers' InternVL has"
            )
    ratio = config.get("downsample_ratio", 0.5)
    if not 1 / patches <= ratio <= 1 or ratio != 1 / round(1 / ratio) or patches % round(1 / ratio):
        raise ValueError(f"downsample_ratio: got {ratio!r}, expected 1 / n with an n that divides {patches} patches")


def get_llm_architecture(config: Mapping[str, Any]) -> str:
    """Return the architecture of a chat model's LLM, one of `CONVERTED_LLMS`.

    Raises:
        ValueError: it is another architecture.
    """
    names = config["llm_config"].get("architectures")
    found = names[0] if isinstance(names, list) and names else names
    if not isinstance(found, str) or found not in CONVERTED_LLMS:
        raise ValueError(f"llm_config.architectures: got {found!r}, expected one of {sorted(CONVERTED_LLMS)}")
    return found


def get_tile_size(config: Mapping[str, Any]) -> int:
    """Return the side of the square tiles that images are cut into, in pixels."""
    return config.get("force_image_size") or config["vision_config"]["image_size"]


def compute_image_sequence_length(config: Mapping[str, Any]) -> int:
    """Return the number of tokens that the language model reads per tile."""
    patches = get_tile_size(config) // config["vision_config"]["patch_size"]
    return int(patches * config.get("downsample_ratio", 0.5)) ** 2


def build_internvl_config(config: Mapping[str, Any], image_token_id: int, dtype: str) -> InternVLConfig:
    """Build the configuration of the same model in transformers.

    Args:
        config: config.json of the chat model, accepted by `check_config`.
        image_token_id: id of `<IMG_CONTEXT>`.
        dtype: dtype of the weights, such as "bfloat16".
    Raises:
        ValueError: transformers rejects the value of a field.
    """
    from transformers import InternVLConfig

    text = _build_text_config(config)
    try:
        return InternVLConfig(
            architectures=["InternVLForConditionalGeneration"],
            vision_config=_build_vision_config(config["vision_config"]),
            text_config=text,
            image_token_id=image_token_id,
            image_seq_length=compute_image_sequence_length(config),
            downsample_ratio=config.get("downsample_ratio", 0.5),
            vision_feature_layer=config.get("select_layer", -1),
            tie_word_embeddings=text["tie_word_embeddings"],
            dtype=dtype,
        )
    except Exception as error:  # the class depends on the check that fails
        raise ValueError(f"config.json: transformers rejects it ({error})") from error


def _is_valid(kind: str, value: Any) -> bool:
    if kind == NORM:
        return value in NORMS
    if kind in (SWITCH, TEXT):
        return isinstance(value, bool if kind == SWITCH else str)
    if kind == LAYER:
        return isinstance(value, int) and not isinstance(value, bool)
    types = (int,) if kind == SIZE else (int, float)
    return isinstance(value, types) and not isinstance(value, bool) and 0 < value < float("inf")


def _check_optional_fields(config: Mapping[str, Any]) -> None:
    for field, kind in {**OPTIONAL_FIELDS, **NULLABLE_FIELDS}.items():
        part, _, name = field.rpartition(".")
        fields = config[part] if part else config
        if (
            name in fields
            and not _is_valid(kind, fields[name])
            and not (field in NULLABLE_FIELDS and fields[name] is None)
        ):
            raise ValueError(f"{field}: got {fields[name]!r}, expected {kind}")


def _check_heads(config: Mapping[str, Any]) -> None:
    for part in REQUIRED_FIELDS:
        width, heads = config[part]["hidden_size"], config[part]["num_attention_heads"]
        if width % heads:
            raise ValueError(f"{part}.num_attention_heads: got {heads}, expected one that divides hidden_size {width}")
    heads = config["llm_config"]["num_attention_heads"]
    kv_heads = config["llm_config"].get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(f"llm_config.num_key_value_heads: got {kv_heads}, expected one that divides {heads} heads")


def _build_vision_config(vision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["intermediate_size"],
        "num_hidden_layers": vision["num_hidden_layers"],
        "num_attention_heads": vision["num_attention_heads"],
        "num_channels": vision.get("num_channels", 3),
        "patch_size": [vision["patch_size"]] * 2,
        "image_size": [vision["image_size"]] * 2,
        "hidden_act": vision.get("hidden_act", "gelu"),
        "norm_type": vision.get("norm_type", "rms_norm"),  # default of the chat model's code
        "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
        "attention_bias": vision.get("qkv_bias", False),
        "use_qk_norm": vision.get("qk_normalization", True),
        "attention_dropout": vision.get("attention_dropout", 0.0),
        "projection_dropout": vision.get("dropout", 0.0),
        "initializer_range": vision.get("initializer_range", 0.02),
        "layer_scale_init_value": vision.get("initializer_factor", 0.1),
    }


def _build_text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    architecture, llm = get_llm_architecture(config), config["llm_config"]
    model_type, converted_architecture = CONVERTED_LLMS[architecture]
    names = SHARED_FIELDS if architecture == INTERNLM2 else SHARED_FIELDS + QWEN2_FIELDS
    text = {name: llm[name] for name in names if name in llm}
    if text.get("num_key_value_heads") is None:
        text["num_key_value_heads"] = llm["num_attention_heads"]
    if architecture == INTERNLM2:
        text["attention_bias"] = llm.get("bias", False)
        text["mlp_bias"] = False
    # vLLM selects the language model by its architecture.
    text |= {"model_type": model_type, "architectures": [converted_architecture]}
    text["tie_word_embeddings"] = llm.get("tie_word_embeddings", False)
    text["rope_parameters"] = _build_rope_parameters(llm, architecture)
    return text


def _build_rope_parameters(llm: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = llm.get("rope_scaling")
    if not (given is None or isinstance(given, Mapping)):
        raise ValueError(f'llm_config.rope_scaling: got {given!r}, expected {{"type": ..., "factor": ...}} or null')
    scaling = dict(given or {})
    old_name = scaling.pop("type", None)
    kind = scaling.pop("rope_type", old_name) or "default"
    known = ["default", *sorted(SCALED_ROPE if architecture == INTERNLM2 else {*SCALED_ROPE, *ROPE_INIT_FUNCTIONS})]
    if kind not in known:
        raise ValueError(f"llm_config.rope_scaling: got {kind!r}, expected one of {known} with {architecture}")
    factor: Any = scaling.get("factor")
    if kind in SCALED_ROPE and not (_is_valid(NUMBER, factor) and factor >= 1):
        raise ValueError(
            f"llm_config.rope_scaling.factor: got {factor!r}, expected a number of at least 1 with {kind!r}"
        )
    return {**scaling, "rope_type": kind, "rope_theta": float(llm.get("rope_theta") or DEFAULT_ROPE_THETA)}
