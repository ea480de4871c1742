"""`himtok eval --baseline`: what answers score that do not look at the image, on the same samples by the same rules.

Contract: two baselines are scored beside the results: the average training mask of the phrase (average_masks.py), and
the model's own answers, given to other images (shuffled_answers.py). A sample without an answer stays a failure in the
second; the first answers it. Boxes have no baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from himtok_plugin.jobs.processes import Processes
from himtok_plugin.validation import abridged

from .average_masks import AverageMasks, read_average_masks
from .baseline_report import BaselineReport, SampleCounts
from .phrases import find_phrase
from .redecoding import Redecoder
from .results import (
    ERROR,
    PREDICTED,
    PREDICTED_BOXES,
    TRUE,
    TRUE_BOXES,
    drop_low_scores,
    find_size,
    load_result_runs,
    read_results,
)
from .scoring import ResultScores
from .shuffled_answers import ShuffledAnswers, transfer_masks

NOT_COMPARED = "not_scored"  # a count that is the same for results and baselines


@dataclass(frozen=True)
class BaselineSettings:
    """What the baselines are made from.

    Attributes:
        train: files of training rows, at least one.
        seed: of the exchange of answers.
    """

    train: Sequence[Path]
    seed: int = 0


class NamedResult(NamedTuple):
    """A result, the number of its line (None for a sample without a result), and its name in errors."""

    line: int | None
    row: dict[str, Any]
    name: str


class Baselines:
    """Scores both baselines on results, a few at a time; those of several processes can be merged.

    Args:
        average: the average training masks.
        shuffled: which result gets which answer.
        scores: the scores of the results, whose rules are those of the baselines.
        redecoder: decodes the answers again.
    """

    def __init__(
        self, average: AverageMasks, shuffled: ShuffledAnswers, scores: ResultScores, redecoder: Redecoder | None = None
    ) -> None:
        self._average = average
        self._shuffled = shuffled
        self._redecoder = redecoder
        self._root, self._min_score = scores.root, scores.min_score
        self.average_scores = scores.without_results()
        self.shuffled_scores = scores.without_results()
        self.samples = SampleCounts()

    @classmethod
    def read(
        cls,
        path: str | Path,
        settings: BaselineSettings,
        scores: ResultScores,
        rows: str | Path | None = None,
        redecoder: Redecoder | None = None,
        left_out: set[int] | None = None,
        processes: Processes | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Baselines:
        """Read all answers and the training rows.

        Args:
            path: the result file.
            settings: the training rows, and the seed.
            scores, redecoder: see the class.
            rows: the dataset of the run, whose samples without a result are failures.
            left_out: numbers of lines that are not scored.
            processes: the processes that share the work.
            on_progress: called with the bytes read so far: of the results, then of the training rows.
        Raises:
            ValueError: a file cannot be used, see `ShuffledAnswers` and `read_average_masks`.
            OSError: a file cannot be read.
        """
        shuffled = ShuffledAnswers(path, settings.seed, left_out or set(), on_progress)
        phrases = set(shuffled.phrases)
        for line, row in read_results(rows) if rows is not None else ():
            with _errors_named(f"{rows}: row {line}"):
                phrases.add(find_phrase(row))
        size = Path(path).stat().st_size
        continued = None if on_progress is None else lambda consumed: on_progress(size + consumed)
        average = read_average_masks(settings.train, phrases, scores.root, processes, continued)
        return cls(average, shuffled, scores, redecoder)

    def add(self, results: Sequence[NamedResult]) -> None:
        """Add results to the scores of the baselines.

        Args:
            results: they can be read: their own scores have been added.
        Raises:
            ValueError: the answer of a baseline cannot be read, or the size of its image is unknown.
            OSError: a file cannot be read.
        """
        scored = [result for result in results if self._has_truth(result.row)]
        answers = self._read_answers([each.line for each in scored if each.row.get(ERROR) is None])
        for line, row, name in scored:
            truth = {key: value for key, value in row.items() if key not in (PREDICTED_BOXES, TRUE_BOXES)}
            with _errors_named(name):
                self._add_average(truth)
            self._add_shuffled(NamedResult(line, truth, name), answers.get(line))

    def merge_processes(self, processes: Processes) -> None:
        """Add the samples of all other processes."""
        own = (self.average_scores, self.shuffled_scores, self.samples)
        for rank, (average, shuffled, samples) in enumerate(processes.gather(own)):
            if rank != processes.rank:
                self.average_scores.merge(average)
                self.shuffled_scores.merge(shuffled)
                self.samples.merge(samples)

    def report(self) -> BaselineReport:
        """The scores of all samples so far."""
        average, shuffled = (
            {name: value for name, value in scores.compute().items() if name != NOT_COMPARED}
            for scores in (self.average_scores, self.shuffled_scores)
        )
        return BaselineReport(average, shuffled, self.samples, self._average.training, self._shuffled.seed)

    def _has_truth(self, row: dict[str, Any]) -> bool:
        """Whether a result has true masks; those of one with an error may be unreadable."""
        if row.get(TRUE) is None or row.get(ERROR) is None:
            return row.get(TRUE) is not None
        try:
            load_result_runs({**row, PREDICTED: []}, self._root)
        except (ValueError, OSError):
            return False
        return True

    def _read_answers(self, lines: Sequence[int | None]) -> dict[int | None, NamedResult]:
        """Read the answer that each line gets."""
        answers = []
        for line in lines:
            donor, row = self._shuffled.read_answer(line)
            name = f"{self._shuffled.path}: row {donor}"
            with _errors_named(name):
                row = drop_low_scores(row, self._min_score)
                if self._redecoder is not None:
                    self._redecoder.check(row)
            answers.append(NamedResult(donor, row, name))
        if self._redecoder is not None:
            decoded = self._redecoder([each.row for each in answers])
            answers = [each._replace(row=row) for each, row in zip(answers, decoded, strict=True)]
        return dict(zip(lines, answers, strict=True))

    def _add_average(self, row: dict[str, Any]) -> None:
        phrase = find_phrase(row)
        known = phrase in self._average.by_phrase
        self.samples.known += known
        self.samples.unknown += not known
        answered = {key: value for key, value in row.items() if key != ERROR}
        answered[PREDICTED] = []
        if not self._average.has_mask(phrase):
            self.samples.no_target += 1
        else:
            answered[PREDICTED] = self._average.answer(phrase, self._find_size(row))
        self.average_scores.add(answered)

    def _add_shuffled(self, result: NamedResult, answer: NamedResult | None) -> None:
        if answer is None:
            self.samples.failed += 1
            self.shuffled_scores.add(result.row)
            return
        same = self._shuffled.has_same_phrase(result.line)
        self.samples.same_phrase += same
        self.samples.other_phrase += not same
        masks: list[dict[str, Any]] = []
        if answer.row.get(PREDICTED):
            with _errors_named(result.name):
                size = self._find_size(result.row)
            with _errors_named(answer.name):
                masks = transfer_masks(answer.row, size)
        self.shuffled_scores.add({**result.row, PREDICTED: masks}, result.name)

    def _find_size(self, row: dict[str, Any]) -> tuple[int, int]:
        """The size of a result's image, the usual one for an image that is not at hand, if there is no mask either."""
        size = find_size(row, self._root) or self._shuffled.usual_size
        if size is None:
            raise ValueError(
                f"images: got {abridged(row.get('images'))}, expected an image that can be read, because no result "
                "has a mask that says which size the answer of a baseline has"
            )
        return size


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Errors begin with a name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
