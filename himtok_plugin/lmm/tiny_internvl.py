"""Builds tiny untrained InternVL models that transformers and ms-swift load like released ones.

Contract: `build_tiny_internvl` writes a folder with an untrained `InternVLForConditionalGeneration`, its processor and
a text tokenizer trained on the given texts. An image is one tile. transformers' Auto classes load the folder, and
`swift sft --model DIR` infers model type `internvl` and template `internvl_hf` from its config.json. Class, file names
and special tokens are those of InternVL3-hf. Mask tokens are added as to any other model.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    set_seed,
)

PAD_TOKEN = "<|endoftext|>"
TURN_END_TOKEN = "<|im_end|>"
# Special tokens that the processor needs, under its names for them.
IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIAL_TOKENS = (PAD_TOKEN, "<|im_start|>", TURN_END_TOKEN, *IMAGE_TOKENS.values())
MIN_VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte has a token, so that any text can be tokenized
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_ROLES = ("user", "assistant")
PIXEL_SHUFFLE = 2  # InternVL merges 2 x 2 patches to one image token (config: downsample_ratio 0.5)
POSITION_SCALE = 0.5  # of the same order as the patch embeddings
LAYER_SCALE = 1.0  # InternVL's 0.1 suits deep pretrained towers; from scratch it costs thousands of steps
MAX_POSITIONS = 1024


@dataclass(frozen=True)
class TinyLmmSize:
    """Size of a tiny LMM.

    Attributes:
        hidden, layers, heads: of the language model.
        vision_hidden, vision_layers, vision_heads: of the vision tower.
        image_size, patch_size: in pixels.
        vocabulary: maximum size of the text tokenizer.

    Raises:
        ValueError: a field is out of range, or two are inconsistent.
    """

    hidden: int
    layers: int
    heads: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    image_size: int = 64
    patch_size: int = 8
    vocabulary: int = 512

    def __post_init__(self) -> None:
        for name, width, heads in (
            ("hidden", self.hidden, self.heads),
            ("vision_hidden", self.vision_hidden, self.vision_heads),
        ):
            if width % heads or (width // heads) % 2:
                raise ValueError(f"{name}: got {width} with {heads} heads, expected an even width per head")
        if self.vision_hidden % 4:
            raise ValueError(f"vision_hidden: got {self.vision_hidden}, expected a multiple of 4")
        if self.image_size % (self.patch_size * PIXEL_SHUFFLE):
            raise ValueError(
                f"image_size: got {self.image_size}, expected a multiple of {self.patch_size * PIXEL_SHUFFLE} "
                f"({PIXEL_SHUFFLE} patches of {self.patch_size})"
            )
        if self.vocabulary < MIN_VOCABULARY:
            raise ValueError(f"vocabulary: got {self.vocabulary}, expected at least {MIN_VOCABULARY}")

    @property
    def image_tokens(self) -> int:
        """Number of tokens of an image in the language model."""
        return (self.image_size // (self.patch_size * PIXEL_SHUFFLE)) ** 2


LMM_SIZES = {
    "nano": TinyLmmSize(hidden=32, layers=2, heads=2, vision_hidden=32, vision_layers=1, vision_heads=2),
    "demo": TinyLmmSize(hidden=192, layers=4, heads=4, vision_hidden=128, vision_layers=3, vision_heads=4),
    "pocket": TinyLmmSize(
        hidden=192, layers=7, heads=4, vision_hidden=128, vision_layers=4, vision_heads=4, patch_size=4
    ),
}


def build_tiny_internvl(
    out_dir: str | Path, texts: Iterable[str], size: str | TinyLmmSize = "demo", seed: int = 0
) -> Path:
    """Write an untrained model to a folder.

    Args:
        out_dir: the folder.
        texts: texts that the text tokenizer is trained on, such as prompts and answers of the training data.
        size: a key of `LMM_SIZES`, or a size.
        seed: of the random weights.

    Returns:
        The folder.

    Raises:
        ValueError: there is no size of this name.
    """
    if isinstance(size, str):
        if size not in LMM_SIZES:
            raise ValueError(f"size: got {size!r}, expected one of {sorted(LMM_SIZES)}")
        size = LMM_SIZES[size]
    out_dir = Path(out_dir)
    tokenizer = train_tokenizer(_with_roles(texts), size.vocabulary)
    set_seed(seed)
    model = InternVLForConditionalGeneration(_config(size, tokenizer))
    _initialise(model, size)
    model.save_pretrained(out_dir)
    _processor(size, tokenizer).save_pretrained(out_dir)
    return out_dir


def _with_roles(texts: Iterable[str]) -> Iterator[str]:
    """Texts and the names of chat roles, so that a role name is one token instead of one per letter."""
    for text in texts:
        yield from (text, *CHAT_ROLES)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `vocabulary` tokens with InternVL's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=TURN_END_TOKEN,
        extra_special_tokens=dict(IMAGE_TOKENS),
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _config(size: TinyLmmSize, tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    vision = {
        "hidden_size": size.vision_hidden,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_heads,
        "intermediate_size": 4 * size.vision_hidden,
        "image_size": [size.image_size, size.image_size],
        "patch_size": [size.patch_size, size.patch_size],
        "attention_bias": True,
        "layer_scale_init_value": LAYER_SCALE,
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "intermediate_size": 3 * size.hidden,  # three such matrices have about as many weights as two with factor 4
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.get_vocab()[IMAGE_TOKENS["context_image_token"]],
        image_seq_length=size.image_tokens,
        downsample_ratio=1 / PIXEL_SHUFFLE,
        tie_word_embeddings=True,
    )


def _processor(size: TinyLmmSize, tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    square = {"height": size.image_size, "width": size.image_size}
    # ms-swift always requests tiles (crop_to_patches=True), which a maximum of one tile disables.
    image_processor = GotOcr2ImageProcessor(size=square, crop_to_patches=False, min_patches=1, max_patches=1)
    return InternVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=square),
        image_seq_length=size.image_tokens,
        chat_template=CHAT_TEMPLATE,
    )


@torch.no_grad()
def _initialise(model: InternVLForConditionalGeneration, size: TinyLmmSize) -> None:
    """Initialize the position embeddings of the patches with sines instead of zeros.

    From zeros, the tower would first have to learn that images are two-dimensional.
    """
    positions = model.model.vision_tower.embeddings.position_embeddings
    side = size.image_size // size.patch_size
    positions[0, 1:] = POSITION_SCALE * _grid_sines(side, size.vision_hidden)


def _grid_sines(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, (side * side, width), row by row, as in ViT baselines and MAE."""
    frequencies = torch.exp(torch.arange(width // 4) * (-math.log(4 * side) / (width // 4))) * math.pi / 2
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)
