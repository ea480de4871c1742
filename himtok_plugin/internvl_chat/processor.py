"""What goes with the weights: how images are cut, how a conversation is written, how answers are generated.

Contract: `native_processor` makes transformers' `InternVLProcessor` cut images into the tiles that the authors cut them
into, and write conversations as they wrote them, their system message included. `generation_config` holds the released
model's way of decoding. Does not know weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from himtok_plugin.hierarchical_loss import LOGIT_SCALE

from .chat_config import image_sequence_length, tile_size
from .tokenizer import IMAGE_CONTEXT, begins_with_bos

if TYPE_CHECKING:
    from transformers import GenerationConfig, InternVLProcessor, PreTrainedTokenizerFast

# The message of InternVL2.5, of which HiMTok was made, and InternVL3: "You are InternVL (Chinese name: Shusheng
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


def system_message(config: Mapping[str, Any]) -> str:
    """What conversations with this model begin with.

    Raises:
        ValueError: a conversation template of another family.
    """
    name = config.get("template")
    if name not in SYSTEM_MESSAGES:
        raise ValueError(f"template: got {name!r}, expected one of {sorted(SYSTEM_MESSAGES)}")
    return SYSTEM_MESSAGES[name]


def chat_template(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    """Jinja template of conversations in the authors' format."""
    template = _CHAT_TEMPLATE
    replaced = {
        "BOS": "{{ bos_token }}" if begins_with_bos(tokenizer) else "",
        "SYSTEM": system_message(config),
        "IMAGE": IMAGE_CONTEXT,
        "VIDEO": tokenizer.video_token,
    }
    for word, text in replaced.items():
        template = template.replace(word, text)
    return template


def native_processor(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    """Processor of images and conversations.

    Raises:
        ValueError: tiles without the thumbnail, which transformers always adds.
    """
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tiles = bool(config.get("dynamic_image_size", True))
    largest = config.get("max_dynamic_patch", 6) if tiles else 1
    if largest > 1 and not config.get("use_thumbnail", True):
        raise ValueError("use_thumbnail: got False, expected True: transformers' tiles always come with a thumbnail")
    side = tile_size(config)
    pixels = {"size": {"height": side, "width": side}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    image_processor = GotOcr2ImageProcessor(
        # Whoever asks for tiles all the same, as ms-swift does, then gets one.
        crop_to_patches=tiles,
        min_patches=config.get("min_dynamic_patch", 1) if tiles else 1,
        max_patches=largest,
        **pixels,
    )
    return InternVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**pixels),
        image_seq_length=image_sequence_length(config),
        chat_template=chat_template(config, tokenizer),
    )


def generation_config(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    turn_end_id: int | None,
    num_mask_tokens: int | None,
) -> GenerationConfig:
    """How answers are generated: without sampling, to the end of the turn; and how masks come of them.

    The keys about masks are named like the options of `--plugin himtok`, which reads them; others pass over them.

    Args:
        config: config.json of the chat model.
        tokenizer: its text tokenizer, None where there is none.
        turn_end_id: id of `TURN_END`, None if no file tells it.
        num_mask_tokens: codes of a mask at most, None for a model without masks.
    """
    from transformers import GenerationConfig

    llm = config["llm_config"]
    own = llm.get("eos_token_id") if tokenizer is None else tokenizer.eos_token_id
    ends = [turn_end_id, *(own if isinstance(own, list) else [own])]
    settings: dict[str, Any] = {}
    if config.get("template") in SYSTEM_MESSAGES:
        settings["system"] = system_message(config)
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
