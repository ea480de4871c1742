"""The scores of the baselines of `himtok eval --baseline`, and on how many samples and training rows they rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from himtok_plugin.validation import counted

Scores = Mapping[str, float | int | None]


@dataclass(frozen=True)
class TrainingCounts:
    """What the training rows have.

    Attributes:
        files: of the rows.
        with_mask, without_mask: number of answers.
        skipped: number of rows that cannot be used; training skips them as well.
        first_skipped: the first of them, and why.
    """

    files: list[str]
    with_mask: int
    without_mask: int
    skipped: int = 0
    first_skipped: str = ""


@dataclass
class SampleCounts:
    """What the baselines know about the samples.

    Attributes:
        known, unknown: samples whose phrase training has, or has not.
        no_target: samples that the average mask answers with "no target".
        same_phrase, other_phrase: samples that get an answer to the same phrase, or to another one.
        failed: samples without an answer.
    """

    known: int = 0
    unknown: int = 0
    no_target: int = 0
    same_phrase: int = 0
    other_phrase: int = 0
    failed: int = 0

    def merge(self, other: SampleCounts) -> None:
        """Add the samples of another process."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True)
class BaselineReport:
    """The scores of both baselines.

    Attributes:
        average_mask, shuffled: metric -> value, as in the scores of the results.
        samples: what the baselines know about them.
        training: the training rows.
        seed: of the exchange of answers.
    """

    average_mask: Scores
    shuffled: Scores
    samples: SampleCounts
    training: TrainingCounts
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def columns(self, scores: Scores) -> dict[str, Scores]:
        """The columns of a table of the results' scores and those of the baselines."""
        return {"results": scores, "average mask": self.average_mask, "shuffled": self.shuffled}

    def describe(self) -> list[str]:
        """What the columns are, in sentences."""
        samples, training = self.samples, self.training
        known, same = counted(samples.known, "sample"), counted(samples.same_phrase, "sample")
        lines = [
            f"average mask: {known} with a phrase of {', '.join(training.files)}, answered by the mean of its masks; "
            f"{samples.unknown} with another phrase, answered by the mean of all {training.with_mask} training masks; "
            f"{samples.no_target} answered with no target, like most training answers to their phrase",
            f"shuffled: {same} with the answer to the same phrase about another image; {samples.other_phrase} with one "
            f"to another phrase, because theirs is asked about no further image; {samples.failed} without an answer; "
            f"seed {self.seed}",
        ]
        if training.skipped:
            lines.append(f"{counted(training.skipped, 'training row')} skipped, the first: {training.first_skipped}")
        return lines
