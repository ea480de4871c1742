"""Warms up the projector: image tokens learn to say in words what is where, as text would.

A random projector tells the language model nothing, and the features of a network that was trained to name whole
images hardly say where things are. A language model could learn both from answers, a few tokens per photograph. Here,
every image token is a target. Five tokens in a row are a description of what is there: the name of a class, and the
first and last row and column of all its objects, each as the language model's own embedding of the word or digit. A
language model continues text that it has read before; so it finds "dog" in the image and goes on with what follows,
after a few steps of training. It does not run here, so a photograph costs a tenth of what it costs in training.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Self, TextIO

import torch
import torch.nn.functional as F
from descriptions import GRID, LENGTH, NOTHING, PARTS, describe, to_token_texts
from photographs import CocoFolder
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms.v2 import ColorJitter
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor

NOTHING_WEIGHT = 0.3  # most places show nothing
DISTANCE_WEIGHT = 1.0
BATCH_SIZE = 32
LOG_STEPS, MEASURE_STEPS = 20, 130
# A few hundred photographs are soon learned by heart.
FEATURE_DROPOUT, BLOCK_DROPOUT, OUTPUT_DROPOUT = 0.1, 0.1, 0.3
COLOURS = 2  # how often features of a training photograph are computed, each time with other colours
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}


class Descriptions(Dataset):
    """Images of a folder in COCO's layout, and the words that their image tokens are to say.

    Items are (pixels (3, h, w), words (g * g,) int64). Words are indices of `words`: digits, class names, `NOTHING`.
    """

    def __init__(self, folder: Path, processor: LlavaProcessor, jitter: bool):
        self.source = CocoFolder(folder)
        self._ids = self.source.all_ids()
        self._images = processor.image_processor
        self.grid: int = processor.image_processor.size["height"] // processor.patch_size
        self.words = [*map(str, range(GRID)), *self.source.names.values(), NOTHING]
        self._indices = {word: i for i, word in enumerate(self.words)}
        self._jitter = ColorJitter(**JITTER) if jitter else nn.Identity()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        photograph = self.source.load(self._ids[index])
        pixels = self._images(self._jitter(photograph.image), return_tensors="pt").pixel_values[0]
        words = describe(photograph.regions, self.source.names, self.grid)
        return pixels, torch.tensor([self._indices[word] for word in words])


class WordReader(nn.Module):
    """Compares the projector's outputs with embeddings of words."""

    def __init__(self, embeddings: Tensor, tokens: list[list[int]]):
        """`embeddings`: (vocabulary, width) of the language model; `tokens` of each word, the last is `NOTHING`."""
        super().__init__()
        self.register_buffer("words", torch.stack([embeddings[each].mean(0) for each in tokens]))
        self.register_buffer("common", embeddings.mean(0))
        self.spread = float((self.words - self.common).square().sum(-1).mean())
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, outputs: Tensor) -> Tensor:
        """Outputs of the projector (b, g * g, width) to logits of words (b, g * g, words)."""
        # All embeddings have much in common, which says nothing about the word.
        words, special = F.normalize(self.words - self.common, dim=-1), F.normalize(outputs - self.common, dim=-1)
        return special @ words.T * self.log_scale.exp()

    def loss(self, outputs: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy of words (b, g * g), and the squared distance from their embeddings, per image token."""
        weights = torch.where(words == len(self.words) - 1, NOTHING_WEIGHT, 1.0)
        entropy = F.cross_entropy(self(outputs).transpose(1, 2), words, reduction="none")
        distance = (outputs - self.words[words]).square().sum(-1) / self.spread
        return (weights * (entropy + DISTANCE_WEIGHT * distance)).sum() / weights.sum()


class Encoder(nn.Module):
    """The trained stages of the image network, and the projector; drops values, blocks and channels in training."""

    def __init__(self, stages: nn.Sequential, projector: nn.Module):
        super().__init__()
        # Depthwise convolutions are about twice as fast on CPUs when the channels of a pixel are neighbours.
        self.stages = stages.to(memory_format=torch.channels_last)
        self.projector = projector
        self.drop_channels, self.drop_values = nn.Dropout2d(FEATURE_DROPOUT), nn.Dropout(OUTPUT_DROPOUT)
        for module in stages.modules():
            if hasattr(module, "drop_path"):
                module.drop_path = DropPath(BLOCK_DROPOUT)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what drops; batch normalization keeps its statistics."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d, DropPath)):
                module.train(mode)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, c, h, w) of the fixed stages to image tokens (b, g * g, width), row by row."""
        features = features.float().contiguous(memory_format=torch.channels_last)
        outputs = self.stages(self.drop_channels(features)).flatten(2).transpose(1, 2)
        return self.projector(self.drop_values(outputs))


def warm_up(base: Path, train: Path, held_out: Path, out: Path, *, frozen_blocks: int, steps: int, seed: int) -> None:
    """Train the projector and the last stages of the image network on descriptions, and save the model.

    Args:
        base: the model to begin with.
        train: photographs in COCO's layout.
        held_out: others, of which the right words are counted.
        out: folder of the resulting model and its processor, and of `warm_up.jsonl` with the loss and the shares of
            right words.
        frozen_blocks: stages of the image network that stay as they are. Their features are computed once.
        steps: of `BATCH_SIZE` photographs.
        seed: of the order, of what is dropped, and of the changes of colours.
    """
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).to(device).eval()
    processor = AutoProcessor.from_pretrained(base)
    data = Descriptions(train, processor, jitter=True)
    tokens = processor.tokenizer(to_token_texts(data.words), add_special_tokens=False).input_ids
    reader = WordReader(model.get_input_embeddings().weight.detach(), tokens).to(device)
    first, last = split_network(model.model.vision_tower.timm_model, frozen_blocks)
    features = compute_features(first, data, COLOURS)
    others = compute_features(first, Descriptions(held_out, processor, jitter=False))
    encoder = Encoder(last, model.model.multi_modal_projector).to(device)
    groups = [
        {"params": [*encoder.stages.parameters()], "lr": 3e-4},
        {"params": [*encoder.projector.parameters()], "lr": 2e-3},
        {"params": [*reader.parameters()], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
    rates = [group["lr"] for group in groups]
    # Of 10 steps or fewer, the schedule would divide by zero.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(steps, 11), pct_start=0.1)
    out.mkdir(parents=True, exist_ok=True)
    batches = repeat(DataLoader(features, BATCH_SIZE, shuffle=True))
    with (out / "warm_up.jsonl").open("w") as log:
        for step, (inputs, words) in enumerate(islice(batches, steps), start=1):
            encoder.train()
            loss = reader.loss(encoder(inputs.to(device)), words.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % LOG_STEPS == 0:
                print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), file=log, flush=True)
            if step % MEASURE_STEPS == 0 or step == steps:
                write_scores({"step": step, "photographs": "held out"} | measure(encoder, reader, others), log)
        every = max(1, len(features) // len(others))  # neighbours are variants of a photograph
        seen = TensorDataset(*features[::every])
        write_scores({"step": steps, "photographs": "train"} | measure(encoder, reader, seen), log)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def write_scores(scores: dict[str, object], log: TextIO) -> None:
    print(json.dumps(scores), file=log, flush=True)
    print(scores)


def split_network(network: nn.Module, frozen_blocks: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Split an EfficientNet of timm, without its pooling and classifier, after some of its stages."""
    first = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:frozen_blocks])
    return first, nn.Sequential(*network.blocks[frozen_blocks:], network.conv_head, network.bn2)


@torch.no_grad()
def compute_features(network: nn.Module, data: Descriptions, times: int = 1) -> TensorDataset:
    """Compute the features of every image, in half precision, and the words; `times` when the colours are drawn."""
    device = next(network.parameters()).device
    batches = (batch for _ in range(times) for batch in DataLoader(data, BATCH_SIZE, num_workers=1))
    features, words = zip(*((network(pixels.to(device)).half().cpu(), words) for pixels, words in batches), strict=True)
    return TensorDataset(torch.cat(features), torch.cat(words))


def repeat(batches: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from batches


@torch.no_grad()
def measure(encoder: Encoder, reader: WordReader, features: TensorDataset) -> dict[str, float]:
    """Return the loss, the share of right words, and how many of the classes are found.

    Keys are those of `PARTS` for descriptions of objects, `nothing` for the others; `recall` is the share of a
    photograph's described classes that are named in some description, `precision` of the named ones that are there.
    """
    encoder.eval()
    device = reader.words.device
    losses, guesses, words = [], [], []
    for inputs, targets in DataLoader(features, BATCH_SIZE):
        outputs = encoder(inputs.to(device))
        losses += [float(reader.loss(outputs, targets.to(device)))] * len(inputs)
        guesses.append(reader(outputs).argmax(-1).cpu().unflatten(1, (-1, LENGTH)))
        words.append(targets.unflatten(1, (-1, LENGTH)))
    guess, word, nothing = torch.cat(guesses), torch.cat(words), len(reader.words) - 1
    is_object = word[..., 0] != nothing
    scores = {key: float((guess == word)[..., i][is_object].float().mean()) for i, key in enumerate(PARTS)}
    scores["nothing"] = float((guess == word)[..., 0][~is_object].float().mean())
    hits, named, wanted = 0, 0, 0
    for one, other in zip(guess[..., 0].tolist(), word[..., 0].tolist(), strict=True):
        found, there = set(one) - {nothing}, set(other) - {nothing}
        hits, named, wanted = hits + len(found & there), named + len(found), wanted + len(there)
    scores |= {"recall": hits / max(wanted, 1), "precision": hits / max(named, 1), "loss": sum(losses) / len(losses)}
    return {key: round(score, 3) for key, score in scores.items()}
