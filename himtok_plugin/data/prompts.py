"""Prompts: pools of texts for questions and answers in YAML files, several per task, with weights.

`prompt_pools/english.yaml` ships with the package; `--prompts FILE` replaces some of its pools.
Contract: a pool is a list of texts, or of {text, weight}; fields are in braces. Every pool and field of a file is
checked when it is read. The field `plural` is the English plural of `category`; a text uses one, the other, or both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from himtok_plugin.files.text import read_text
from himtok_plugin.mask_text import BOX_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.resources import shipped_path
from himtok_plugin.validation import abridged
from himtok_plugin.words.plurals import pluralize

DEFAULT_FILE = shipped_path(Path(__file__).parent / "prompt_pools" / "english.yaml")
_FIELD = re.compile(r"\{(\w+)\}")
_CATEGORY, _PLURAL = "category", "plural"


@dataclass(frozen=True)
class Pool:
    texts: tuple[str, ...]
    weights: tuple[float, ...]


class Prompts:
    """Pools by name and kind: `prompts.draw("segment", "questions", rng, expression="the dog")`."""

    def __init__(self, pools: Mapping[str, Mapping[str, Pool]]) -> None:
        self._pools = {task: dict(kinds) for task, kinds in pools.items()}

    @classmethod
    def load(cls, path: Path | None = None) -> Prompts:
        """Load the shipped pools, and those of a file in place of shipped ones.

        Raises:
            ValueError: not YAML, an unknown pool, field or weight.
        """
        pools = _read_pools(DEFAULT_FILE)
        if path is not None:
            fields = {(t, k): _text_fields(pool.texts[0]) for t, kinds in pools.items() for k, pool in kinds.items()}
            for task, kinds in _read_pools(path).items():
                for kind, pool in kinds.items():
                    if (task, kind) not in fields:
                        names = ", ".join(f"{t}.{k}" for t, k in fields)
                        raise ValueError(f"{path}: got the pool {task}.{kind}, expected one of {names}")
                    # Without its fields, a text would be the same question in every sample.
                    for text in pool.texts:
                        own = _text_fields(text)
                        if own != fields[task, kind]:
                            raise ValueError(
                                f"{path}: {task}.{kind}: {text!r} holds {sorted(own)}, expected "
                                f"{sorted(fields[task, kind])}"
                            )
                    pools[task][kind] = pool
        return cls(pools)

    def texts(self, task: str, kind: str) -> tuple[str, ...]:
        """All texts of a pool, with their fields in braces."""
        return self._pools[task][kind].texts

    def texts_of_kind(self, kind: str) -> tuple[str, ...]:
        """All texts of the pools of a kind, of all tasks that have one."""
        return tuple(text for kinds in self._pools.values() if kind in kinds for text in kinds[kind].texts)

    def draw(self, task: str, kind: str, rng: random.Random, **fields: str) -> str:
        """Draw a text of a pool by weight and fill in its fields; `plural` is made from `category`."""
        if _CATEGORY in fields:
            fields[_PLURAL] = pluralize(fields[_CATEGORY])
        pool = self._pools[task][kind]
        text = rng.choices(pool.texts, pool.weights)[0] if len(pool.texts) > 1 else pool.texts[0]
        return _FIELD.sub(lambda match: fields[match[1]], text)


def _text_fields(text: str) -> set[str]:
    """The fields of a text: names in braces, of which `plural` is another form of `category`, and placeholders."""
    names = {_CATEGORY if name == _PLURAL else name for name in _FIELD.findall(text)}
    return names | {mark for mark in (MASK_PLACEHOLDER, BOX_PLACEHOLDER) if mark in text}


def _read_pools(path: Path) -> dict[str, dict[str, Pool]]:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(kinds, dict) for kinds in content.values()):
        raise ValueError(f"{path}: is {abridged(content)}: expected tasks, each with pools of texts")
    return {
        task: {kind: _parse_pool(texts, f"{path}: {task}.{kind}") for kind, texts in kinds.items()}
        for task, kinds in content.items()
    }


def _parse_pool(entries: Any, name: str) -> Pool:
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{name}: is {abridged(entries)}: expected a list of texts")
    texts, weights = [], []
    for entry in entries:
        text, weight = (entry.get("text"), entry.get("weight", 1)) if isinstance(entry, dict) else (entry, 1)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}: got {abridged(entry)}, expected a text or {{text, weight}}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"{name}: weight: got {abridged(weight)}, expected a number above 0")
        texts.append(text)
        weights.append(float(weight))
    return Pool(tuple(texts), tuple(weights))
