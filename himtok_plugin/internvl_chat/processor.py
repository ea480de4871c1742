"""Builds the processor, the chat template and the generation configuration of a converted chat model.

`build_processor` configures transformers' `InternVLProcessor` to cut images into the authors' tiles and to format
conversations as the authors do, with their system message. `build_generation_config` contains the decoding settings of
the released model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from himtok_plugin.hierarchical_loss import LOGIT_SCALE

from .chat_config import compute_image_sequence_length, get_tile_size
from .fast_tokenizer import IMAGE_CONTEXT, adds_bos_token

if TYPE_CHECKING:
    from transformers import GenerationConfig, InternVLProcessor, PreTrainedTokenizerFast

# The system message of InternVL3 and of InternVL2.5, HiMTok's base model: "You are InternVL (Chinese name: Shusheng
# Wanxiang), a multimodal large language model developed by Shanghai AI Laboratory, Tsinghua University and partners."
SYSTEM_MESSAGES = {
    "internvl2_5": (
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
    ),
}
TURN_END = "<|im_end|>"
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MASK_DECODING, MASK_TEMPERATURE = "soft", 1 / LOGIT_SCALE  # code probabilities are softmax(logits / temperature)

_CHAT_TEMPLATE = (
    "{%- set given = messages and messages[0]['role'] == 'system' -%}"
    "BOS{% if not given %}{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE\n' }}"
    "{% elif part['type'] == 'video' %}{{ 'VIDEO\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def get_system_message(config: Mapping[str, Any]) -> str:
    """Return the system message of conversations with this model.

    Raises:
        ValueError: the conversation template is that of another model family.
    """
    name = config.get("template")
    if name not in SYSTEM_MESSAGES:
        raise ValueError(f"template: got {name!r}, expected one of {sorted(SYSTEM_MESSAGES)}")
    return SYSTEM_MESSAGES[name]


def build_chat_template(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    """Build the jinja template that formats conversations as the authors do."""
    template = _CHAT_TEMPLATE
    replaced = {
        "BOS": "{{ bos_token }}" if adds_bos_token(tokenizer) else "",
        "SYSTEM": get_system_message(config),
        "IMAGE": IMAGE_CONTEXT,
        "VIDEO": tokenizer.video_token,
    }
    for word, text in replaced.items():
        template = template.replace(word, text)
    return template


def build_processor(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    """Build the processor of images and conversations.

    Raises:
        ValueError: the model reads tiles without a thumbnail, which transformers always adds.
    """
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tiles = bool(config.get("dynamic_image_size", True))
    largest = config.get("max_dynamic_patch", 6) if tiles else 1
    if largest > 1 and not config.get("use_thumbnail", True):
        raise ValueError("use_thumbnail: got False, expected True: transformers' tiles always come with a thumbnail")
    side = get_tile_size(config)
    pixels = {"size": {"height": side, "width": side}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    image_processor = GotOcr2ImageProcessor(
        # A caller that requests tiles all the same, as ms-swift does, gets one tile then.
        crop_to_patches=tiles,
        min_patches=config.get("min_dynamic_patch", 1) if tiles else 1,
        max_patches=largest,
        **pixels,
    )
    return InternVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**pixels),
        image_seq_length=compute_image_sequence_length(config),
        chat_template=build_chat_template(config, tokenizer),
    )


def build_generation_config(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    turn_end_id: int | None,
    num_mask_tokens: int | None,
) -> GenerationConfig:
    """Build the generation configuration: no sampling, answers that end with the turn, and how masks are decoded.

    The keys about masks are named like the options of `--plugin himtok`, which reads them; other libraries ignore them.

    Args:
        config: config.json of the chat model.
        tokenizer: its text tokenizer, None if it was not converted.
        turn_end_id: id of `TURN_END`, None if no tokenizer file has it.
        num_mask_tokens: largest number of codes of a mask, None for a model without a mask tokenizer.
    """
    from transformers import GenerationConfig

    llm = config["llm_config"]
    own = llm.get("eos_token_id") if tokenizer is None else tokenizer.eos_token_id
    ends = [turn_end_id, *(own if isinstance(own, list) else [own])]
    settings: dict[str, Any] = {}
    if config.get("template") in SYSTEM_MESSAGES:
        settings["system"] = get_system_message(config)
    if num_mask_tokens is not None:
        settings |= {
            "mask_decoding": MASK_DECODING,
            "mask_temperature": MASK_TEMPERATURE,
            "num_mask_tokens": num_mask_tokens,
        }
    return GenerationConfig(
        do_sample=False,
        bos_token_id=llm.get("bos_token_id"),
        eos_token_id=[i for i in dict.fromkeys(ends) if i is not None] or None,
        pad_token_id=llm.get("pad_token_id") if tokenizer is None else tokenizer.pad_token_id,
        **settings,
    )
