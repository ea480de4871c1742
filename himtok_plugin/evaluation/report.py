"""Reports: scores with their protocol, run card and failures, as JSON and as Markdown tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from himtok_plugin.files.output_file import check_replaceable_json
from himtok_plugin.pages.markdown import escape_markdown

from .baseline_report import BaselineReport
from .protocols import RESIZES, Protocol
from .provenance import RunCard

COUNTS = (
    *("samples", "missing", "failures", "classes", "unreadable"),
    *("scored_masks", "box_samples", "box_missing", "not_scored"),
)
LISTED_FAILURES = 20  # in Markdown; JSON lists all


@dataclass
class ScoreReport:
    """Scores of one set of samples.

    Attributes:
        name: of the set.
        scores: metric -> value; None if there are no samples of its kind.
        protocol: the evaluation protocol.
        run: the run card of the predictions; None if unknown.
        failures: a line for each sample without an answer; the scores count it as wrong.
        per_class: IoU of each class.
        left_out: number of results that were left out, because another result of their row was scored.
        baselines: scores of answers that do not look at the image; None if they were not asked for.
    """

    name: str
    scores: dict[str, float | int | None]
    protocol: Protocol
    run: RunCard | None = None
    failures: list[str] = field(default_factory=list)
    per_class: dict[str, float | None] = field(default_factory=dict)
    left_out: int = 0
    baselines: BaselineReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def save(self, path: Path) -> list[Path]:
        """Write `path`.json and `path`.md, and return both paths."""
        files = [path.with_name(path.name + ending) for ending in (".json", ".md")]
        check_replaceable_json(files[0], "scores", "protocol")
        if files[1].exists() and not files[0].exists():
            raise ValueError(f"{files[1]}: got a file without {files[0].name}, expected a new name or that of a report")
        for file, text in zip(files, (json.dumps(self.to_dict(), indent=2), self.markdown()), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n", encoding="utf-8")
        return files

    def rules(self) -> dict[str, str]:
        """Protocol and run settings as text, `-` for unknown values."""
        run = self.run or RunCard()
        return {
            "protocol": f"{self.protocol.name}: {self.protocol.summary}",
            "resize": RESIZES.get(run.resize, run.resize),
            "threshold": _format_setting(run.threshold),
            "checkpoint": ", ".join(run.checkpoint) or "-",
            "checkpoint hash": run.checkpoint_hash or "-",
            "mask tokens": _format_setting(run.num_mask_tokens),
            "decoding": _format_setting(run.mask_decoding),
            "refiner": _format_setting(run.refiner),
            "min_score": _format_setting(run.min_score),
            "seed": _format_setting(run.seed),
            "temperature": _format_setting(run.temperature),
            "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()) or "-",
            **{name: _format_setting(value) for name, value in run.further.items()},
        }

    def markdown(self) -> str:
        """The report as a Markdown section: scores, protocol and run, failures, classes. All text is shown as it is."""
        columns = {"value": self.scores} if self.baselines is None else self.baselines.columns(self.scores)
        lines = [f"## {escape_markdown(self.name)}", "", f"| metric | {' | '.join(columns)} | protocol |"]
        lines.append(f"|---|{'---:|' * len(columns)}---|")
        for name in self.scores:
            values = " | ".join(format_score(name, scores.get(name)) for scores in columns.values())
            lines.append(f"| {escape_markdown(name)} | {values} | {self.protocol.name} |")
        if self.baselines is not None:
            lines += ["", *(f"- {escape_markdown(line)}" for line in self.baselines.describe())]
        lines += ["", "| | |", "|---|---|"]
        lines += [f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in self.rules().items()]
        if self.left_out:
            lines += ["", f"{self.left_out} results are left out, because their row has another one."]
        if self.failures:
            lines += ["", f"{len(self.failures)} failures, in the scores as wrong answers:", ""]
            lines += [f"- {escape_markdown(failure)}" for failure in self.failures[:LISTED_FAILURES]]
            if len(self.failures) > LISTED_FAILURES:
                lines.append(f"- … {len(self.failures) - LISTED_FAILURES} more")
        if self.per_class:
            lines += ["", "| class | IoU |", "|---|---:|"]
            lines += [
                f"| {escape_markdown(name)} | {format_score('IoU', iou)} |" for name, iou in self.per_class.items()
            ]
        return "\n".join(lines)


def format_score(name: str, value: float | int | None) -> str:
    """A value of a metric as text, `-` if there is none."""
    return "-" if value is None else str(value) if name in COUNTS else f"{value:.4f}"


def _format_setting(value: Any) -> str:
    return "-" if value is None else str(value)
