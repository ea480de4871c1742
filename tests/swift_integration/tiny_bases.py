"""Tiny untrained LMMs of several families, with the token ids that ms-swift's templates require.

Contract: `build_<family>(folder)` writes a model of transformers' own class with one or two layers of 16 channels, its
processor and a new tokenizer, and returns the folder. Vocabularies are as large as the released ones if ms-swift's code
contains ids of special tokens; embeddings are tied as in the smallest released model. `BASES` names each folder like a
released model, because ms-swift distinguishes models of the same architecture by their names.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl

HIDDEN = 16
IMAGE_SIDE, PATCH = 32, 8  # of the bases that resize every image to one size
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SIGLIP = {**TEXT, "model_type": "siglip_vision_model", "image_size": IMAGE_SIDE, "patch_size": PATCH}
QWEN_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
)


def class_or_skip(name: str) -> Any:
    """Return a class of transformers; skip the test where the installed release is older than the model."""
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


def numbered(tokens: str, first: int) -> dict[str, int]:
    """Consecutive ids for tokens separated by spaces."""
    return {token: i for i, token in enumerate(tokens.split(), first)}


def byte_tokenizer(
    size: int, special: dict[str, int], whole: dict[str, int] | None = None, **roles
) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and special tokens with `size` tokens, the others unused.

    Args:
        special: id of each special token.
        whole: id of each text that is one token without being special.
        roles: `eos_token` and the like.
    """
    whole = whole or {}
    alphabet = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    names = {i: token for token, i in (special | whole).items()}
    vocabulary = {names.get(i) or next(alphabet, f"unused{i}"): i for i in range(size)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(whole))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def save(folder: Path, model_class: type[PreTrainedModel], config, processor: ProcessorMixin) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# ----- Qwen


def qwen_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """`words` tokens before the special ones."""
    special = numbered(QWEN_SPECIAL, words)
    return byte_tokenizer(words + len(special), special, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def qwen_vision(**fields) -> dict:
    size = {"depth": 1, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_heads": 2}
    return {**size, "out_hidden_size": HIDDEN, **fields}


def qwen_rope(**fields) -> dict:
    return {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, **fields}


def build_qwen2_5_vl(folder: Path) -> Path:
    """Untied, with unused token embeddings as in the released models."""
    tokenizer = qwen_tokenizer(151643)
    text = {**TEXT, "vocab_size": 151936, "rope_parameters": qwen_rope(), "tie_word_embeddings": False}
    vision = qwen_vision(fullatt_block_indexes=[0])
    ids = qwen_ids(tokenizer)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template="")
    return save(folder, Qwen2_5_VLForConditionalGeneration, config, processor)


def qwen3_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    return Qwen3VLProcessor(Qwen2VLImageProcessor(patch_size=16), tokenizer, Qwen3VLVideoProcessor(), chat_template="")


def build_qwen3_vl(folder: Path) -> Path:
    """Image features enter the text model at several layers."""
    tokenizer = qwen_tokenizer(151643)
    text = {**TEXT, "head_dim": 8, "vocab_size": 151936, "rope_parameters": qwen_rope(mrope_interleaved=True)}
    vision = qwen_vision(deepstack_visual_indexes=[0])
    ids = qwen_ids(tokenizer)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    return save(folder, Qwen3VLForConditionalGeneration, config, qwen3_processor(tokenizer))


def build_qwen3_5(folder: Path) -> Path:
    """A layer of linear attention before one of full attention."""
    tokenizer = qwen_tokenizer(248044)
    text = {
        **TEXT,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "vocab_size": 248320,
        "rope_parameters": qwen_rope(mrope_interleaved=True, partial_rotary_factor=1.0),
        "tie_word_embeddings": True,
    }
    ids = qwen_ids(tokenizer)
    config = class_or_skip("Qwen3_5Config")(
        text_config=text, vision_config=qwen_vision(), tie_word_embeddings=True, **ids
    )
    return save(folder, transformers.Qwen3_5ForConditionalGeneration, config, qwen3_processor(tokenizer))


# ----- LLaVA


def build_llava(folder: Path) -> Path:
    """LLaVA 1.5: a CLIP tower before a Llama; there are no unused token embeddings."""
    special = numbered("<unk> <s> </s> <pad> <image>", 300)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = byte_tokenizer(305, special, **roles)
    vision = {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": HIDDEN, "num_hidden_layers": 2}
    config = LlavaConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=vision,
        image_token_index=special["<image>"],
    )
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return save(folder, LlavaForConditionalGeneration, config, processor)


def build_llava_onevision(folder: Path) -> Path:
    """A SigLIP tower before a Qwen2; an image becomes a thumbnail and tiles."""
    special = numbered("<|endoftext|> <|im_start|> <|im_end|> <image> <video>", 151643)
    tokenizer = byte_tokenizer(151648, special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    grid = [[IMAGE_SIDE, IMAGE_SIDE], [IMAGE_SIDE, 2 * IMAGE_SIDE], [2 * IMAGE_SIDE, IMAGE_SIDE]]
    config = LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": 152000, "tie_word_embeddings": True},
        vision_config={**SIGLIP, "vision_use_head": False},
        image_grid_pinpoints=grid,
        tie_word_embeddings=True,
    )
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(IMAGE_SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
    )
    return save(folder, LlavaOnevisionForConditionalGeneration, config, processor)


# ----- Gemma

GEMMA_SPECIAL = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
GEMMA3_NEWLINES = {"\n" * count: 106 + count for count in range(1, 32)}  # up to 31 newlines are one token
GEMMA_ROLES = {token.strip("<>") + "_token": token for token in GEMMA_SPECIAL}


def build_gemma3(folder: Path) -> Path:
    """Image tokens see each other; only some layers attend to everything."""
    turns = {"<start_of_turn>": 105, "<end_of_turn>": 106}
    images = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = {**GEMMA_SPECIAL, **turns, **dict(zip(images.values(), (255999, 256000, 262144), strict=True))}
    tokenizer = byte_tokenizer(262145, special, GEMMA3_NEWLINES, extra_special_tokens=images, **GEMMA_ROLES)
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    image_tokens = 4
    config = Gemma3Config(
        text_config={**TEXT, **layers, "vocab_size": 262208, "query_pre_attn_scalar": 8},
        vision_config={**SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=image_tokens,
    )
    image_processor = Gemma3ImageProcessor(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE})
    processor = Gemma3Processor(image_processor, tokenizer, image_seq_length=image_tokens)
    return save(folder, Gemma3ForConditionalGeneration, config, processor)


def build_gemma4(folder: Path) -> Path:
    """E2B: every layer has its own token embeddings. ms-swift takes all ids from its configuration."""
    images = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
    sounds = {"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>"}
    turns = "<|turn> <turn|> <|think|> <|channel> <channel|> <|video|>"
    special = GEMMA_SPECIAL | numbered(" ".join([turns, *images.values(), *sounds.values()]), 300)
    tokenizer = byte_tokenizer(320, special, extra_special_tokens={**images, **sounds}, **GEMMA_ROLES)
    ids = {f"{role}_id": special[token] for role, token in {**images, **sounds}.items() if role != "eoa_token"}
    text = {
        **TEXT,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "head_dim": 8,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 4,
        "vocab_size": len(tokenizer),
        "vocab_size_per_layer_input": len(tokenizer),
    }
    image_tokens = 70  # the minimum; an image fills them all
    config = class_or_skip("Gemma4Config")(
        text_config=text,
        vision_config={**TEXT, "head_dim": 8, "default_output_length": image_tokens},  # vLLM reads the latter
        video_token_id=special["<|video|>"],
        eoa_token_index=special["<audio|>"],
        **ids,
    )
    processor = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessor(max_soft_tokens=image_tokens),
        tokenizer,
        transformers.Gemma4VideoProcessor(),
    )
    return save(folder, transformers.Gemma4ForConditionalGeneration, config, processor)


# ----- others


def build_mistral3(folder: Path) -> Path:
    """A Pixtral tower, for images of any size, before a Mistral."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[IMG]": 10, "<pad>": 11}
    special |= {"[IMG_BREAK]": 12, "[IMG_END]": 13, "[SYSTEM_PROMPT]": 17, "[/SYSTEM_PROMPT]": 18}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = byte_tokenizer(320, special, **roles)
    vision = {**TEXT, "model_type": "pixtral", "head_dim": 8, "image_size": 2 * IMAGE_SIDE, "patch_size": PATCH}
    config = Mistral3Config(
        text_config={**TEXT, "model_type": "mistral", "head_dim": 8, "vocab_size": len(tokenizer)},
        vision_config=vision,
        tie_word_embeddings=False,
    )
    image_processor = PixtralImageProcessor(size={"longest_edge": 2 * IMAGE_SIDE}, patch_size=PATCH)
    processor = PixtralProcessor(image_processor, tokenizer, patch_size=PATCH, spatial_merge_size=2)
    return save(folder, Mistral3ForConditionalGeneration, config, processor)


def build_glm4v(folder: Path) -> Path:
    """GLM-4.1V: in training, ms-swift embeds the images itself."""
    names = "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> "
    names += "<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|image|> <|video|>"
    special = numbered(names, 151329)
    tokenizer = byte_tokenizer(151345, special, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    ids = {
        "image_token_id": special["<|image|>"],
        "video_token_id": special["<|video|>"],
        "image_start_token_id": special["<|begin_of_image|>"],
        "image_end_token_id": special["<|end_of_image|>"],
        "video_start_token_id": special["<|begin_of_video|>"],
        "video_end_token_id": special["<|end_of_video|>"],
    }
    config = Glm4vConfig(
        text_config={**TEXT, "vocab_size": 151552, "rope_parameters": qwen_rope()},
        vision_config=qwen_vision(image_size=IMAGE_SIDE),
        tie_word_embeddings=False,
        **ids,
    )
    processor = Glm4vProcessor(Glm4vImageProcessor(), tokenizer, Glm4vVideoProcessor(), chat_template="")
    return save(folder, Glm4vForConditionalGeneration, config, processor)


def build_mllama(folder: Path) -> Path:
    """Llama 3.2 Vision: images enter by cross-attention; there are 8 more input than output embeddings."""
    names = "<|begin_of_text|> <|end_of_text|> <|finetune_right_pad_id|> <|start_header_id|> <|end_header_id|> "
    special = numbered(names + "<|eot_id|> <|image|>", 314)
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    tokenizer = byte_tokenizer(321, special, **roles)
    ids = {role.replace("token", "token_id"): special[token] for role, token in roles.items()}
    config = MllamaConfig(
        text_config={**TEXT, "num_hidden_layers": 2, "cross_attention_layers": [1], "vocab_size": 320, **ids},
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 2 * HIDDEN,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH,
            "intermediate_layers_indices": [0],
        },
        image_token_index=special["<|image|>"],
    )
    image_processor = MllamaImageProcessor(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, max_image_tiles=4)
    return save(folder, MllamaForConditionalGeneration, config, MllamaProcessor(image_processor, tokenizer))


def build_internvl(folder: Path) -> Path:
    """The package's own tiny LMM."""
    return build_tiny_internvl(folder, ["Segment it."], "nano")


BASES = {
    "InternVL3-1B-hf": build_internvl,
    "Qwen2.5-VL-3B-Instruct": build_qwen2_5_vl,
    "Qwen3-VL-2B-Instruct": build_qwen3_vl,
    "Qwen3.5-0.8B": build_qwen3_5,
    "llava-1.5-7b-hf": build_llava,
    "llava-onevision-qwen2-0.5b-ov-hf": build_llava_onevision,
    "gemma-3-4b-it": build_gemma3,
    "gemma-4-E2B-it": build_gemma4,
    "Mistral-Small-3.1-24B-Instruct-2503": build_mistral3,
    "GLM-4.1V-9B-Base": build_glm4v,
    "Llama-3.2-11B-Vision-Instruct": build_mllama,
}
