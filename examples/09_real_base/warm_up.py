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

import numpy as np
import torch
import torch.nn.functional as F
from photographs import CocoFolder, Photograph
from questions import GRID, find_place
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import ColorJitter
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor, PreTrainedModel

DESCRIPTION = ("name", "top", "bottom", "left", "right")  # what the tokens of a description say
LENGTH = len(DESCRIPTION)
NOTHING = "nothing"  # all words of a description where no object is
NOTHING_WEIGHT = 0.3  # most descriptions are of nothing
MIN_CELLS = 0.15  # image tokens' areas that a class covers, to be described there
DISTANCE_WEIGHT = 1.0
BATCH_SIZE = 16
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
        if self.grid % LENGTH:
            raise ValueError(f"image_size: got {self.grid} tokens in a row, expected a multiple of {LENGTH}")
        self._classes = {category["id"]: i for i, category in enumerate(self.source.categories, start=GRID)}
        names = (category["name"] for category in self.source.categories)
        self.words = [*map(str, range(GRID)), *names, NOTHING]
        self._jitter = ColorJitter(**JITTER) if jitter else nn.Identity()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        photograph = self.source.load(self._ids[index])
        pixels = self._images(self._jitter(photograph.image), return_tensors="pt").pixel_values[0]
        return pixels, self._describe(photograph)

    def _describe(self, photograph: Photograph) -> Tensor:
        """Return the words (g * g,) of a photograph.

        Of the classes in a place, the one is described that has most of its area there, so that small ones are
        described too.
        """
        masks: dict[int, np.ndarray] = {}
        for region in photograph.regions:
            masks[region.category_id] = region.mask | masks.get(region.category_id, False)
        places = self.grid, self.grid // LENGTH
        words = torch.full((*places, LENGTH), len(self.words) - 1)
        most = torch.zeros(places)
        for category, mask in masks.items():
            pixels = torch.from_numpy(mask.astype(np.float32))[None, None]
            cells = F.interpolate(pixels, places, mode="area")[0, 0] * LENGTH
            share = cells / cells.sum()
            chosen = (cells >= MIN_CELLS) & (share > most)
            most[chosen] = share[chosen]
            words[chosen] = torch.tensor([self._classes[category], *find_place(mask)])
        return words.flatten()


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


def warm_up(
    base: Path, train: Path, held_out: Path, out: Path, *, frozen: tuple[str, ...], steps: int, seed: int
) -> None:
    """Train the projector and the last stages of the image network on descriptions, and save the model.

    Args:
        base: the model to begin with.
        train: photographs in COCO's layout.
        held_out: others, of which the right answers are counted.
        out: folder of the resulting model and its processor, and of `warm_up.jsonl` with the loss.
        frozen: names of modules of the image network that stay as they are.
        steps: of 16 photographs.
        seed: of the order and of the changes of colours.
    """
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).to(device).eval()
    processor = AutoProcessor.from_pretrained(base)
    data = Descriptions(train, processor, jitter=True)
    # Names follow a space in answers, digits do not.
    texts = [word if word.isdigit() else f" {word}" for word in data.words]
    tokens = processor.tokenizer(texts, add_special_tokens=False).input_ids
    reader = WordReader(model.get_input_embeddings().weight.detach(), tokens).to(device)
    network, projector = model.model.vision_tower.timm_model, model.model.multi_modal_projector
    trained = [p for name, p in network.named_parameters() if not name.startswith(tuple(f"{f}." for f in frozen))]
    groups = [
        {"params": trained, "lr": 3e-4},
        {"params": [*projector.parameters()], "lr": 2e-3},
        {"params": [*reader.parameters()], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "warm_up.jsonl").open("w") as log:
        for step, batch in enumerate(islice(repeat(load(data, shuffle=True)), steps), start=1):
            pixels, words = (tensor.to(device) for tensor in batch)
            loss = reader.loss(encode(model, pixels), words)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 10 == 0:
                print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), file=log, flush=True)
        scores = measure(model, reader, Descriptions(held_out, processor, jitter=False))
        print(json.dumps(scores), file=log)
        print(scores)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def encode(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Return the projector's outputs (b, g * g, width): one per image token, row by row."""
    return torch.stack(list(model.model.get_image_features(pixels).pooler_output))


def load(data: Descriptions, shuffle: bool) -> DataLoader:
    return DataLoader(data, BATCH_SIZE, shuffle=shuffle, num_workers=1, persistent_workers=True)


def repeat(batches: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from batches


@torch.no_grad()
def measure(model: PreTrainedModel, reader: WordReader, data: Descriptions) -> dict[str, float]:
    """Return the share of right words, and how many of the classes are found.

    Keys are those of `DESCRIPTION` for descriptions of objects, `nothing` for the others; `recall` is the share of a
    photograph's described classes that are named in some description, `precision` of the named ones that are there.
    """
    right: dict[str, list[Tensor]] = {key: [] for key in (*DESCRIPTION, "nothing")}
    hits, named, wanted = 0, 0, 0
    nothing = len(data.words) - 1
    for pixels, words in load(data, shuffle=False):
        guesses = reader(encode(model, pixels.to(model.device))).argmax(-1).cpu().unflatten(1, (-1, LENGTH))
        words = words.unflatten(1, (-1, LENGTH))
        is_object = words[..., 0] != nothing
        for i, key in enumerate(DESCRIPTION):
            right[key].append((guesses == words)[..., i][is_object])
        right["nothing"].append((guesses == words)[..., 0][~is_object])
        for guess, word in zip(guesses[..., 0].tolist(), words[..., 0].tolist(), strict=True):
            found, there = set(guess) - {nothing}, set(word) - {nothing}
            hits, named, wanted = hits + len(found & there), named + len(found), wanted + len(there)
    scores = {key: float(torch.cat(values).float().mean()) for key, values in right.items()}
    scores |= {"recall": hits / max(wanted, 1), "precision": hits / max(named, 1)}
    return {key: round(score, 3) for key, score in scores.items()}
