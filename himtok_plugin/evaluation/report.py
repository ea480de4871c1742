"""Reports of scores: numbers with the rules and the run that they belong to, as JSON and as a Markdown table.

Contract: `ScoreReport` is complete: protocol, run, counts of failures, scores. `markdown` shows it. Does not know how
scores come about.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .protocols import RESIZES, Protocol
from .provenance import RunCard

COUNTS = (
    *("samples", "missing", "failures", "classes", "unreadable"),
    *("scored_masks", "box_samples", "box_missing", "not_scored"),
)
LISTED_FAILURES = 20  # in Markdown; JSON has all of them


@dataclass
class ScoreReport:
    """Scores of one set of samples.

    Attributes:
        name: of the set.
        scores: name -> number; None where there is nothing to take a mean of.
        protocol: its rules.
        run: how the predictions came about; None where that is not known.
        failures: what could not be predicted, one line each; all of them are in the scores, as missing answers.
        per_class: IoU of each class.
    """

    name: str
    scores: dict[str, float | int | None]
    protocol: Protocol
    run: RunCard | None = None
    failures: list[str] = field(default_factory=list)
    per_class: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def save(self, path: Path) -> list[Path]:
        """Write `path`.json and `path`.md, and return both."""
        files = [path.with_name(path.name + ending) for ending in (".json", ".md")]
        for file, text in zip(files, (json.dumps(self.to_dict(), indent=2), self.markdown()), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n", encoding="utf-8")
        return files

    def rules(self) -> dict[str, str]:
        """What every number has to be read with, in words."""
        run = self.run or RunCard()
        return {
            "protocol": f"{self.protocol.name}: {self.protocol.summary}",
            "resize": RESIZES.get(run.resize, run.resize),
            "threshold": _shown(run.threshold),
            "checkpoint": ", ".join(run.checkpoint) or "-",
            "checkpoint hash": run.checkpoint_hash or "-",
            "mask tokens": _shown(run.num_mask_tokens),
            "decoding": _shown(run.mask_decoding),
            "refiner": _shown(run.refiner),
            "min_score": _shown(run.min_score),
            "seed": _shown(run.seed),
            "temperature": _shown(run.temperature),
            "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()) or "-",
            **{name: _shown(value) for name, value in run.further.items()},
        }

    def markdown(self) -> str:
        """The report as a Markdown section: scores, then the rules and the run."""
        lines = [f"## {self.name}", "", "| metric | value | protocol |", "|---|---:|---|"]
        for name, value in self.scores.items():
            lines.append(f"| {name} | {_number(name, value)} | {self.protocol.name} |")
        lines += ["", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in self.rules().items()]
        if self.failures:
            lines += ["", f"{len(self.failures)} failures, in the scores as missing answers:", ""]
            lines += [f"- {_cell(failure)}" for failure in self.failures[:LISTED_FAILURES]]
            if len(self.failures) > LISTED_FAILURES:
                lines.append(f"- … {len(self.failures) - LISTED_FAILURES} more")
        if self.per_class:
            lines += ["", "| class | IoU |", "|---|---:|"]
            lines += [f"| {_cell(name)} | {_number('IoU', iou)} |" for name, iou in self.per_class.items()]
        return "\n".join(lines)


def _number(name: str, value: float | int | None) -> str:
    return "-" if value is None else str(value) if name in COUNTS else f"{value:.4f}"


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
