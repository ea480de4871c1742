"""Warms up the projector: each image token learns to say what is at its place, and where that is.

A random projector tells the language model nothing, and the features of a network that was trained to name whole
images hardly say where things are. A language model could learn both from answers, a few tokens per photograph. Here,
every image token is a target: the projector's output is to be the language model's own embedding of the class name, to
which fixed random vectors that stand for rows and columns are added. A language model reads tokens that are like words
much sooner than others. It does not run here, so a photograph costs a tenth of what it costs in training.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from photographs import CocoFolder, Photograph
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import ColorJitter
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor, PreTrainedModel

NOTHING = "nothing"  # the word for places without an annotated object
NOTHING_WEIGHT = 0.3  # most places show nothing
PLACES = ("row", "column", "top", "bottom", "left", "right")  # of a place, and of all objects of its class
MIN_SHARE = 0.25  # of a place that a class covers, for its extent to be asked there
UNKNOWN = -100  # what cross-entropy ignores
PLACE_LENGTH = 0.5  # of the vector of a place; embeddings of words are about 2 from their mean
DISTANCE_WEIGHT = 3.0
BATCH_SIZE = 16
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}


class Places(Dataset):
    """Images of a folder in COCO's layout, and what is where on a grid of g x g places.

    Items are (pixels (3, h, w), shares (g * g, classes + 1), places (6, g * g)). Shares of a place sum to 1, the last
    is that of `NOTHING`. Places are rows or columns below g in the order of `PLACES`; the last four are `UNKNOWN`
    where nothing is.
    """

    def __init__(self, folder: Path, processor: LlavaProcessor, jitter: bool):
        self.source = CocoFolder(folder)
        self._ids = self.source.all_ids()
        self._images = processor.image_processor
        self.grid: int = processor.image_processor.size["height"] // processor.patch_size
        self._classes = {category["id"]: i for i, category in enumerate(self.source.categories)}
        self._jitter = ColorJitter(**JITTER) if jitter else nn.Identity()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        photograph = self.source.load(self._ids[index])
        pixels = self._images(self._jitter(photograph.image), return_tensors="pt").pixel_values[0]
        shares, extents = self._describe(photograph)
        dominant = shares[:, :-1].max(1)
        extents = extents[dominant.indices].T.masked_fill(dominant.values < MIN_SHARE, UNKNOWN)
        rows = torch.arange(self.grid).repeat_interleave(self.grid)
        columns = torch.arange(self.grid).repeat(self.grid)
        return pixels, shares, torch.cat([rows[None], columns[None], extents])

    def _describe(self, photograph: Photograph) -> tuple[Tensor, Tensor]:
        """Return shares (g * g, classes + 1) and each class's top, bottom, left, right (classes, 4)."""
        g = self.grid
        shares = torch.zeros(len(self._classes) + 1, g, g)
        extents = torch.zeros(len(self._classes), 4, dtype=torch.long)
        for name in {region.category_id for region in photograph.regions}:
            masks = [torch.from_numpy(r.mask.copy()) for r in photograph.regions if r.category_id == name]
            mask = torch.stack(masks).any(0)
            shares[self._classes[name]] = F.interpolate(mask[None, None].float(), (g, g), mode="area")[0, 0]
            for axis, size in enumerate(mask.shape):
                covered = mask.any(1 - axis).nonzero()[:, 0]
                first, last = int(covered[0]) * g // size, int(covered[-1]) * g // size
                extents[self._classes[name], 2 * axis : 2 * axis + 2] = torch.tensor([first, last])
        shares[-1] = (1 - shares[:-1].sum(0)).clamp(min=0)
        return (shares / shares.sum(0)).flatten(1).T, extents


class PlaceReader(nn.Module):
    """Compares the projector's outputs with embeddings of words, to which small vectors for the places are added."""

    def __init__(self, embeddings: Tensor, words: list[list[int]], grid: int, seed: int):
        """`embeddings`: (vocabulary, width) of the language model; `words`: tokens of each class name."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(len(PLACES), grid, embeddings.shape[1], generator=generator)
        self.register_buffer("names", torch.stack([embeddings[tokens].mean(0) for tokens in words]))
        self.register_buffer("common", embeddings.mean(0))
        self.register_buffer("directions", F.normalize(directions, dim=-1))
        self.spread = float((self.names - self.common).square().sum(-1).mean())
        self.log_scales = nn.Parameter(torch.tensor([3.0, 1.0]))

    def forward(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of names (b, g * g, classes + 1) and of places (b, g, 6, g * g).

        Args:
            outputs: of the projector, (b, g * g, width).
        """
        special = F.normalize(outputs - self.common, dim=-1)
        names = special @ F.normalize(self.names - self.common, dim=-1).T * self.log_scales[0].exp()
        places = torch.einsum("bld,pgd->bgpl", outputs, self.directions / PLACE_LENGTH) * self.log_scales[1].exp()
        return names, places

    def target(self, shares: Tensor, places: Tensor) -> Tensor:
        """Return what outputs should be, (b, g * g, width): the mean of the words, and the places that are known."""
        target = shares @ self.names
        for directions, place in zip(self.directions, places.unbind(1), strict=True):
            known = (place != UNKNOWN).unsqueeze(-1)
            target = target + PLACE_LENGTH * directions[place.clamp(min=0)] * known
        return target

    def loss(self, outputs: Tensor, shares: Tensor, places: Tensor) -> Tensor:
        """Cross-entropy of names and of places, and the squared distance from the target, per place."""
        names, place_logits = self(outputs)
        weights = torch.ones_like(shares[0, 0])
        weights[-1] = NOTHING_WEIGHT
        of_names = -(shares * weights * names.log_softmax(-1)).sum(-1).mean()
        of_places = F.cross_entropy(place_logits, places) * len(PLACES)
        distance = (outputs - self.target(shares, places)).square().sum(-1).mean() / self.spread
        return of_names + of_places + DISTANCE_WEIGHT * distance


def warm_up(
    base: Path, train: Path, held_out: Path, out: Path, *, frozen: tuple[str, ...], steps: int, seed: int
) -> None:
    """Train the projector and the last stages of the image network on the places of photographs, and save the model.

    Args:
        base: the model to begin with.
        train: photographs in COCO's layout.
        held_out: others, of which the right answers are counted.
        out: folder of the resulting model and its processor, and of `warm_up.jsonl` with the loss.
        frozen: names of modules of the image network that stay as they are.
        steps: of 16 photographs.
        seed: of the directions, of the order and of the changes of colours.
    """
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).to(device).eval()
    processor = AutoProcessor.from_pretrained(base)
    data = Places(train, processor, jitter=True)
    names = [*(category["name"] for category in data.source.categories), NOTHING]
    words = processor.tokenizer([f" {name}" for name in names], add_special_tokens=False).input_ids
    reader = PlaceReader(model.get_input_embeddings().weight.detach().cpu(), words, data.grid, seed).to(device)
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
            pixels, *targets = (tensor.to(device) for tensor in batch)
            loss = reader.loss(encode(model, pixels), *targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 10 == 0:
                print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), file=log, flush=True)
        scores = measure(model, reader, Places(held_out, processor, jitter=False))
        print(json.dumps(scores), file=log)
        print(scores)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def encode(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Return the projector's outputs (b, g * g, width): one per image token, row by row."""
    return torch.stack(list(model.model.get_image_features(pixels).pooler_output))


def load(data: Places, shuffle: bool) -> DataLoader:
    return DataLoader(data, BATCH_SIZE, shuffle=shuffle, num_workers=1, persistent_workers=True)


def repeat(batches: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from batches


@torch.no_grad()
def measure(model: PreTrainedModel, reader: PlaceReader, data: Places) -> dict[str, float]:
    """Return the share of places whose name is right, where objects are and elsewhere, and of right rows, columns, …"""
    right: dict[str, list[Tensor]] = {key: [] for key in ("objects", "elsewhere", *PLACES)}
    for pixels, shares, places in load(data, shuffle=False):
        names, place_logits = reader(encode(model, pixels.to(model.device)))
        correct = names.argmax(-1).cpu() == shares.argmax(-1)
        is_object = shares[..., :-1].amax(-1) > 0.5
        right["objects"].append(correct[is_object])
        right["elsewhere"].append(correct[shares[..., -1] > 0.5])
        for i, key in enumerate(PLACES):
            known = places[:, i] >= 0
            right[key].append((place_logits[:, :, i].argmax(1).cpu() == places[:, i])[known])
    return {key: round(float(torch.cat(values).float().mean()), 3) for key, values in right.items()}
