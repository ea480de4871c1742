"""Rows for training and for measuring, from photographs in COCO's layout.

`himtok prepare` makes the rows with masks, a question each. Here, rows about the same photograph are joined to
conversations, so that the photograph is encoded once for several questions, and questions that are answered in words
are added: captions, what there is, whether there is something, and where. Places are rows and columns from 0 to 9 of
the photograph. Before each mask, the answer says in which rows and columns it is: a language model knows digits
already, and learns from them what the mask tokens for boxes mean.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from descriptions import describe, find_place, to_token_texts
from photographs import CocoFolder
from pycocotools import mask as coco_mask

from himtok_plugin.data.formats.reader import Source
from himtok_plugin.data.prepare import PrepareJob, prepare_samples
from himtok_plugin.data.tasks.sample_builder import TaskOptions
from himtok_plugin.mask_text import MASK_PLACEHOLDER

Row = dict[str, Any]
Turn = tuple[str, str, list[Any]]  # question, answer, masks
PROMPTS = Path(__file__).parent / "prompts.yaml"
MIN_AREA_SHARE = 0.002  # of a class in the photograph; smaller ones are a few pixels in the LMM's features
MAX_LISTED = 8  # classes in an answer to "What is here?"
MAX_MASKS, MAX_TURNS = 8, 7  # in a conversation
NEGATIVE_SEEDS = 3  # questions without a target per photograph
CAPTION_QUESTIONS = ("Describe this photograph.", "What does this photograph show?")
LIST_QUESTION = "What is here?"
SIDES = ("left", "right")  # wrong in captions of mirrored photographs
ASKED_NAME = re.compile(r"Segment (?:the|each) (.*)\.")  # in prompts.yaml
MAX_LOCATED = 6
LIST_MASKS_QUESTION, LISTED_MASKS = "Segment objects.", 12


def prepare(folder: Path, out: Path, tasks: Iterable[str], seed: int) -> list[Row]:
    """Make rows with one question each, as `himtok prepare coco-json` does, and read them."""
    source = Source("coco-json", folder, "all", folder / "instances.json", folder / "images")
    options = TaskOptions(max_masks=MAX_MASKS)
    prepare_samples(PrepareJob(source, dict.fromkeys(tasks, 1.0), options, PROMPTS, seed=seed), out)
    return read_rows(out)


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def prepare_negatives(folder: Path, out: Path, seed: int) -> list[Row]:
    """Make several questions without a target for each photograph, all different."""
    found = {}
    for number in range(NEGATIVE_SEEDS):
        for row in prepare(folder, out, ("negative",), seed + number):
            found[row["images"][0], row["messages"][0]["content"]] = row
    rows = list(found.values())
    write_rows(out, rows)
    return rows


def limit_absent(absent: list[Row], present: Iterable[Row], rng: random.Random) -> list[Row]:
    """Draw questions without a target: of each question, at most half as many as have a target.

    Otherwise, most photographs that a rare class is asked about do not show it, and "There is no …" is the right answer
    for the question alone.
    """
    asked = Counter(row["messages"][0]["content"] for row in present)
    drawn: Counter[str] = Counter()
    kept = []
    for row in rng.sample(absent, len(absent)):
        question = row["messages"][0]["content"]
        if 2 * (drawn[question] + 1) <= asked[question]:
            drawn[question] += 1
            kept.append(row)
    return kept


def turns_by_image(rows: Iterable[Row]) -> dict[str, list[Turn]]:
    """Group rows with one question by their photograph."""
    turns = defaultdict(list)
    for row in rows:
        question, answer = (message["content"] for message in row["messages"])
        question = question.replace("<image>", "", 1)
        turn = question, add_places(add_name(answer, question), row["masks"]), row["masks"]
        turns[row["images"][0]].append(turn)
    return turns


def add_name(answer: str, question: str) -> str:
    """Begin an answer that is masks alone with the name that the question gives them."""
    asked = ASKED_NAME.fullmatch(question)
    return f"The {asked[1]}: {answer}" if asked and answer.startswith(MASK_PLACEHOLDER) else answer


def name_place(masks: Iterable[Any]) -> str:
    """Name the rows and columns, 0 to 9, from the first to the last that RLE masks of a photograph cover."""
    top, bottom, left, right = find_place(coco_mask.decode(coco_mask.merge([*masks])).astype(bool))
    return f"rows {top}-{bottom}, columns {left}-{right}"


def add_places(answer: str, masks: Iterable[Any]) -> str:
    """Write before each `<mask>` in which rows and columns the mask is."""
    first, *others = answer.split(MASK_PLACEHOLDER)
    places = (name_place([mask]) for mask in masks)
    return first + "".join(f"{place} {MASK_PLACEHOLDER}{text}" for place, text in zip(places, others, strict=True))


def to_messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for question, answer, _ in turns
        for role, text in (("user", question), ("assistant", answer))
    ]


def join_turns(image: str, turns: list[Turn]) -> Row:
    """Make a conversation about a photograph."""
    messages = to_messages(turns)
    messages[0]["content"] = "<image>" + messages[0]["content"]
    return {"messages": messages, "images": [image], "masks": [mask for *_, masks in turns for mask in masks]}


def draw_turns(turns: list[Turn], rng: random.Random) -> list[Turn]:
    """Draw turns in random order, as many as fit into a conversation."""
    drawn: list[Turn] = []
    for turn in rng.sample(turns, len(turns)):
        if len(drawn) < MAX_TURNS and sum(len(each[2]) for each in [*drawn, turn]) <= MAX_MASKS:
            drawn.append(turn)
    return drawn


class Words:
    """Questions about photographs that are answered in words."""

    def __init__(self, folder: Path, captions: dict[str, list[str]], seed: int):
        self._source = CocoFolder(folder)
        self._captions = captions
        self._rng = random.Random(seed)
        self._areas: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._masks: dict[int, list[tuple[str, Any]]] = defaultdict(list)
        for id, annotations in self._source.annotations.items():
            for one in annotations:
                name = self._source.names[one["category_id"]]
                self._areas[id][name] += one["area"]
                self._masks[id].append((name, one["segmentation"]))
        self.images = {str(self._source.path(id).resolve()): image for id, image in self._source.images.items()}
        self._seen = sorted({name for areas in self._areas.values() for name in areas})

    def visible(self, image: dict[str, Any]) -> list[str]:
        """Classes that are large enough to be seen, the largest first."""
        areas = self._areas[image["id"]]
        smallest = MIN_AREA_SHARE * image["height"] * image["width"]
        return sorted((name for name in areas if areas[name] >= smallest), key=lambda name: (-areas[name], name))

    def list_classes(self, image: dict[str, Any]) -> Turn:
        names = self.visible(image)[:MAX_LISTED]
        return LIST_QUESTION, f"{', '.join(names)}." if names else "Nothing that I know.", []

    def ask_presence(self, image: dict[str, Any]) -> Iterator[Turn]:
        """Yield as many questions with the answer yes as with no, at most four."""
        present = self.visible(image)
        absent = [name for name in self._seen if name not in self._areas[image["id"]]]
        for name in self._rng.sample(present, min(2, len(present))):
            yield ask_whether(name), "Yes.", []
        for name in self._rng.sample(absent, min(2, len(present) or 1, len(absent))):
            yield ask_whether(name), "No.", []

    def locate(self, image: dict[str, Any]) -> Iterator[Turn]:
        """Yield questions about the place of classes, each with all its objects."""
        names = self.visible(image)
        for name in self._rng.sample(names, min(MAX_LOCATED, len(names))):
            place = name_place([mask for each, mask in self._masks[image["id"]] if each == name])
            yield f"Where is the {name}?", f"The {name}: {place}.", []

    def caption(self, image: dict[str, Any]) -> Iterator[Turn]:
        """Yield a caption of a photograph that is shown as a whole, where there is one."""
        captions = self._captions.get(str(image["original_id"]), []) if image["is_whole"] else []
        fitting = [text for text in captions if not any(side in text.lower() for side in SIDES)]
        if fitting:
            yield self._rng.choice(CAPTION_QUESTIONS), self._rng.choice(fitting).strip(), []

    def questions(self, path: str) -> Row:
        """Make a conversation in words. No question has the answer of a later one."""
        image = self.images[path]
        return join_turns(path, [*self._ask(image), self.list_classes(image)])

    def conversation(self, path: str) -> Row:
        """Make a conversation in words, with a caption where there is one."""
        image = self.images[path]
        return join_turns(path, [*self._ask(image), *self.caption(image), self.list_classes(image)])

    def read(self, row: Row, grid: int) -> Row:
        """Put the description of a photograph, g * g words, in the photograph's place."""
        (path,) = row["images"]
        regions = self._source.load_regions(self.images[path]["id"])
        text = "".join(to_token_texts(describe(regions, self._source.names, grid)))
        first, *others = row["messages"]
        first = first | {"content": first["content"].replace("<image>", f"{text}\n", 1)}
        return {"messages": [first, *others], "masks": row["masks"]}

    def _ask(self, image: dict[str, Any]) -> list[Turn]:
        presence = [*self.ask_presence(image)]
        self._rng.shuffle(presence)
        return [*presence, *self.locate(image)]


def ask_whether(name: str) -> str:
    return f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name}?"


def mask_conversations(words: Words, turns: dict[str, list[Turn]], rng: random.Random) -> Iterator[Row]:
    """Yield a conversation for each photograph with questions; what there is comes last."""
    for path, image in words.images.items():
        if drawn := draw_turns(turns.get(path, []), rng):
            yield join_turns(path, [*drawn, words.list_classes(image)])


def list_masks(rows: Iterable[Row], rng: random.Random) -> Iterator[Row]:
    """Yield rows without an image: many answers, each with one mask, of all conversations in random order."""
    sentences = []
    for row in rows:
        answers = (message["content"] for message in row["messages"] if MASK_PLACEHOLDER in message["content"])
        sentences += zip(answers, row["masks"], strict=True)
    rng.shuffle(sentences)
    for start in range(0, len(sentences), LISTED_MASKS):
        chosen = sentences[start : start + LISTED_MASKS]
        masks = [mask for _, mask in chosen]
        turn = LIST_MASKS_QUESTION, " ".join(answer for answer, _ in chosen), masks
        yield {"messages": to_messages([turn]), "masks": masks}


def drop_small(rows: Iterable[Row], mask_area: Callable[[Any], float]) -> list[Row]:
    """Leave out rows with a mask that covers less than `MIN_AREA_SHARE` of the photograph."""
    return [row for row in rows if all(mask_area(mask) >= MIN_AREA_SHARE for mask in row["masks"])]


def ask_for_largest(folder: Path, name: str) -> Iterator[Row]:
    """Yield a row per photograph that shows a class, with the mask of its largest object: a task of your own."""
    source = CocoFolder(folder)
    (wanted,) = (id for id, each in source.names.items() if each == name)
    for id, image in source.images.items():
        objects = [one for one in source.annotations[id] if one["category_id"] == wanted and not one["iscrowd"]]
        if not objects:
            continue
        largest = max(objects, key=lambda one: one["area"])
        if largest["area"] >= MIN_AREA_SHARE * image["height"] * image["width"]:
            path = str(source.path(id).resolve())
            masks = [largest["segmentation"]]
            yield join_turns(path, [(f"Segment the largest {name}.", add_places(f"The {name}: <mask>.", masks), masks)])
