"""Tiny InternVL chat checkpoints in the authors' layout, with random weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from tiny_models import released_state, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from himtok_plugin.mask_text import mask_tokens

CODES, MASK_TOKENS = 12, 4
# Heads of 64 and groups of 32 cannot be read off the shapes of released weights.
MASK_FIELDS = {"encoder_heads": 1, "decoder_heads": 1, "latent_layout": "legacy_reshape", "pixel_groups": 32}
MASK_FIELDS |= {"pixel_channels": 32, "pixel_hidden_width": 24}
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
SIDE, PATCH = 56, 14
VISION = {
    "model_type": "intern_vit_6b",
    "architectures": ["InternVisionModel"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_channels": 3,
    "patch_size": PATCH,
    "image_size": SIDE,
    "norm_type": "layer_norm",
    "qkv_bias": True,
    "qk_normalization": False,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
LLM = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CHAT_TOKENS = ["<|im_end|>", "<|im_start|>"]
IMAGE_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
UNUSED = ["[UNUSED_0]", "[UNUSED_1]"]  # pieces that the chat tokens replace
TEXTS = [
    "Segment the road. The mask appears at the left of the picture.",
    "Give the bounding box of <ref>the dog</ref>, then segment it.",
    "system\nuser\nassistant\nImage-1: a small red circle, a large blue square",
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    "def f(x):\n    return x + 1  # twice   spaced\ttabs",
]


@dataclass
class ChatModel:
    """The contents of a checkpoint in the authors' layout, which `write` writes to a folder."""

    config: dict
    state: dict[str, torch.Tensor]
    mask_tokenizer: torch.nn.Module
    texts: dict[str, object] = field(default_factory=dict)  # file name -> JSON, bytes or text of the tokenizer

    def write(self, folder: Path, shards: int = 1, suffix: str = "safetensors") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        for name, content in self.texts.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else data)
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        save = save_file if suffix == "safetensors" else torch.save
        if shards == 1:
            save(self.state, folder / f"{stem}.{suffix}")
            return folder
        names = [f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}" for i in range(shards)]
        weight_map = {}
        for i, name in enumerate(names):
            part = {key: value for j, (key, value) in enumerate(self.state.items()) if j % shards == i}
            save(part, folder / name)
            weight_map |= dict.fromkeys(part, name)
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder


def chat_config(llm: str = "InternLM2ForCausalLM", vision=(), **llm_fields) -> dict:
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "template": "internvl2_5",
        "ps_version": "v2",
        "select_layer": -1,
        "downsample_ratio": 0.5,
        "force_image_size": SIDE,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
        "torch_dtype": "float32",
        "vision_config": {**VISION, **dict(vision)},
        "llm_config": {**LLM, "architectures": [llm], "vocab_size": 512, **llm_fields},
    }


def draw_state(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw the weights of a configuration, with the keys and shapes of the authors' layout."""
    generator = torch.Generator().manual_seed(seed)
    vision, llm = config["vision_config"], config["llm_config"]
    w, f, p = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, w),
        "vision_model.embeddings.position_embedding": (1, 1 + (vision["image_size"] // p) ** 2, w),
        "vision_model.embeddings.patch_embedding.weight": (w, 3, p, p),
        "vision_model.embeddings.patch_embedding.bias": (w,),
    }
    for i in range(vision["num_hidden_layers"]):
        layer = {"ls1": (w,), "ls2": (w,), "attn.qkv.weight": (3 * w, w), "attn.proj.weight": (w, w)}
        layer |= {"attn.proj.bias": (w,), "mlp.fc1.weight": (f, w), "mlp.fc1.bias": (f,)}
        layer |= {"mlp.fc2.weight": (w, f), "mlp.fc2.bias": (w,), "norm1.weight": (w,), "norm2.weight": (w,)}
        if vision["norm_type"] == "layer_norm":
            layer |= {"norm1.bias": (w,), "norm2.bias": (w,)}
        if vision["qkv_bias"]:
            layer["attn.qkv.bias"] = (3 * w,)
        if vision["qk_normalization"]:
            layer |= {"attn.q_norm.weight": (w,), "attn.k_norm.weight": (w,)}
        shapes |= {f"vision_model.encoder.layers.{i}.{key}": shape for key, shape in layer.items()}
    h, m, rows = llm["hidden_size"], llm["intermediate_size"], llm["vocab_size"]
    shapes |= {"mlp1.0.weight": (4 * w,), "mlp1.0.bias": (4 * w,), "mlp1.1.weight": (h, 4 * w), "mlp1.1.bias": (h,)}
    shapes |= {"mlp1.3.weight": (h, h), "mlp1.3.bias": (h,)}
    heads, kv = llm["num_attention_heads"], llm["num_key_value_heads"]
    d = h // heads
    if llm["architectures"] == ["InternLM2ForCausalLM"]:
        layer = {"attention.wqkv.weight": ((heads + 2 * kv) * d, h), "attention.wo.weight": (h, h)}
        layer |= {"feed_forward.w1.weight": (m, h), "feed_forward.w3.weight": (m, h), "feed_forward.w2.weight": (h, m)}
        layer |= {"attention_norm.weight": (h,), "ffn_norm.weight": (h,)}
        if llm.get("bias"):
            layer |= {"attention.wqkv.bias": ((heads + 2 * kv) * d,), "attention.wo.bias": (h,)}
        embeddings, head = "model.tok_embeddings", "output"
    else:
        layer = {"self_attn.q_proj.weight": (h, h), "self_attn.q_proj.bias": (h,), "self_attn.o_proj.weight": (h, h)}
        for name in "kv":
            layer |= {f"self_attn.{name}_proj.weight": (kv * d, h), f"self_attn.{name}_proj.bias": (kv * d,)}
        layer |= {"mlp.gate_proj.weight": (m, h), "mlp.up_proj.weight": (m, h), "mlp.down_proj.weight": (h, m)}
        layer |= {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,)}
        embeddings, head = "model.embed_tokens", "lm_head"
    for i in range(llm["num_hidden_layers"]):
        shapes |= {f"language_model.model.layers.{i}.{key}": shape for key, shape in layer.items()}
    shapes |= {f"language_model.{embeddings}.weight": (rows, h), "language_model.model.norm.weight": (h,)}
    if not llm["tie_word_embeddings"]:
        shapes[f"language_model.{head}.weight"] = (rows, h)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_matrix = len(shape) > 1 and "embedding." not in key
        state[key] = (
            1 + 0.1 * noise if "norm" in key and key.endswith("weight") else noise * (0.2 if is_matrix else 0.5)
        )
    return state


def mask_tokenizer():
    model = tiny_model(seed=3, **MASK_FIELDS)
    with torch.no_grad():  # a spread-out codebook, so that different masks get different codes
        model.quantize.embedding.weight.normal_()
    return model


def chat_model(with_masks: bool = True, texts=None, **config) -> ChatModel:
    """Build a checkpoint with the mask tokenizer under `mask_decoder.`, by default without a text tokenizer."""
    config = chat_config(**config)
    state, masks = draw_state(config), mask_tokenizer()
    if with_masks:
        state |= {f"mask_decoder.{key}": value.contiguous() for key, value in released_state(masks).items()}
    return ChatModel(config, state, masks, texts or {})


def train_sentencepiece(folder: Path, texts=TEXTS, vocab_size: int = 400, **options) -> bytes:
    """Train a SentencePiece model like InternLM2's: byte-pair encoding, byte fallback, spaces kept."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(text.replace("\n", " ") for text in texts * 3), encoding="utf-8")
    chosen = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "user_defined_symbols": UNUSED,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "sp"), vocab_size=vocab_size, **{**chosen, **options}
    )
    return (folder / "sp.model").read_bytes()


def internlm2_files(model: bytes, new_style: bool = True) -> dict[str, object]:
    """Build the tokenizer files of an InternLM2 chat model: chat tokens replace unused pieces, others are appended."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    first = pieces.vocab_size()
    ids = {token: pieces.piece_to_id(unused) for token, unused in zip(CHAT_TOKENS, UNUSED, strict=True)}
    ids |= {token: first + i for i, token in enumerate([*IMAGE_TOKENS, *mask_tokens(CODES)])}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    special = [*CHAT_TOKENS, *IMAGE_TOKENS]
    files: dict[str, object] = {
        "tokenizer.model": model,
        "special_tokens_map.json": {**named, "additional_special_tokens": special},
        "added_tokens.json": ids,
        "tokenizer_config.json": {**named, "tokenizer_class": "InternLM2Tokenizer", "model_max_length": 8192},
    }
    if new_style:
        own = {"<unk>": 0, "<s>": 1, "</s>": 2}
        files["tokenizer_config.json"]["added_tokens_decoder"] = {
            # As transformers writes tokens that were added without flags.
            str(i): {"content": token, "special": token in special or token in own, "normalized": token not in special}
            for token, i in {**own, **ids}.items()
        }
    return files


def rows_needed(files: dict[str, object]) -> int:
    return max(files["added_tokens.json"].values()) + 1


def qwen2_files() -> dict[str, object]:
    """Build the tokenizer files of a Qwen2 chat model."""
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.train_from_iterator(TEXTS * 3, trainer)
    vocabulary = byte_level.get_vocab()
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS, *mask_tokens(CODES)]
    ids = {token: len(vocabulary) + i for i, token in enumerate(added)}
    merges = [" ".join(pair) for pair in json.loads(byte_level.to_str())["model"]["merges"]]
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config["added_tokens_decoder"] = {str(i): {"content": token, "special": True} for token, i in ids.items()}
    return {
        "vocab.json": vocabulary,
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "added_tokens.json": ids,
        "tokenizer_config.json": config,
    }


def with_tokenizer(files: dict[str, object], **options) -> ChatModel:
    """Build a checkpoint with a text tokenizer and as many token embeddings as it needs."""
    return chat_model(texts=files, **{"vocab_size": rows_needed(files), **options})
