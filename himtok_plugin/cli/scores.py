"""`himtok eval|protocols|calibrate`: metrics, comparison and calibration of result files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .common import (
    JsonOption,
    QuietOption,
    RootOption,
    app,
    check_range,
    check_seed,
    mask_tokenizer_from_option,
    print_table,
    write_json_output,
)
from .progress_bars import file_progress

if TYPE_CHECKING:
    from himtok_plugin.evaluation.comparison import RunComparison
    from himtok_plugin.evaluation.redecoding import Redecoder
    from himtok_plugin.evaluation.report import ScoreReport
    from himtok_plugin.masks import Resize


@app.command("eval")
def evaluate(
    results: Annotated[
        list[Path], typer.Argument(metavar="OUT.jsonl", help="Result file of `swift infer --plugin himtok`.")
    ],
    protocol: Annotated[
        str, typer.Option("--protocol", help="Evaluation protocol; `himtok protocols` lists them.")
    ] = "plain",
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two result files, a and b, of the same samples.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="With --compare: write a page of the results that differ most."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="NAME", help="Write NAME.json and NAME.md with scores, protocol and run."),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="ROWS.jsonl", help="The dataset; samples without a result count as failures."),
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            "--baseline",
            metavar="TRAIN.jsonl",
            help="Also score answers that do not look at the image: the average mask of these training rows per "
            "phrase, and the results' own answers with the images shuffled. Repeat it for each file.",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            "--resize", help="Decode the codes again with --mask_tokenizer, and resize by this: bilinear or nearest."
        ),
    ] = None,
    mask_tokenizer: Annotated[
        str | None,
        typer.Option("--mask_tokenizer", help="With --resize: the mask tokenizer of the checkpoint."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            callback=check_range(0, 1),
            help="With --resize: probability from which a pixel is foreground. Default: 0.5.",
        ),
    ] = None,
    boundary: Annotated[
        bool | None,
        typer.Option("--boundary/--no_boundary", help="Boundary F and IoU, the slowest metrics. Default: --boundary."),
    ] = None,
    json_file: JsonOption = None,
    root: RootOption = None,
    min_score: Annotated[
        float,
        typer.Option(
            "--min_score",
            callback=check_range(0, 1),
            help="Leave out predicted masks with a lower score, as `swift infer --min_score` does.",
        ),
    ] = 0.0,
    duplicates: Annotated[
        str,
        typer.Option("--duplicates", help="If a row has several results: refuse the file, or score the first or last."),
    ] = "refuse",
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="With --compare: seed of the bootstrap. With --baseline: of the shuffling. Default: 0.",
            callback=check_seed,
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Score the masks of a result file.

    Compares predicted with true masks and boxes. Under torchrun, the processes share the work.
    """
    from himtok_plugin.evaluation.protocols import find_protocol

    rules = find_protocol(protocol)
    expected = 2 if compare else 1
    if len(results) != expected:
        raise ValueError(f"OUT.jsonl: got {len(results)} files, expected {expected}{' with --compare' * compare}")
    for name, value, needed, is_given in (
        ("--html", html, "--compare", compare),
        ("--seed", seed, "--compare or --baseline", compare or bool(baseline)),
        ("--threshold", threshold, "--resize", resize is not None),
        ("--mask_tokenizer", mask_tokenizer, "--resize", resize is not None),
    ):
        if value is not None and not is_given:
            raise ValueError(f"{name}: got it without {needed}, expected both")
    for name, is_given in (
        ("--report", report is not None),
        ("--rows", rows is not None),
        ("--baseline", bool(baseline)),
        ("--resize", resize is not None),
        ("--[no_]boundary", boundary is not None),
    ):
        if is_given and compare:
            raise ValueError(f"{name}: got it with --compare, which ignores it, expected only one of them")
    if compare:
        from himtok_plugin.evaluation.comparison import compare_results

        a, b = results
        with file_progress(a, b, shown=not quiet) as on_progress:
            compared = compare_results(
                a, b, rules, root, min_score, seed or 0, on_progress=on_progress, duplicates=duplicates
            )
        if html is not None:
            from himtok_plugin.evaluation.comparison_page import write_comparison_page

            write_comparison_page(html, a, b, compared, root, min_score)
        if not write_json_output(compared.to_dict(), json_file):
            _print_comparison(compared)
        return

    from himtok_plugin.evaluation.baselines import BaselineSettings
    from himtok_plugin.evaluation.evaluate import evaluate_results
    from himtok_plugin.jobs.processes import Processes
    from himtok_plugin.validation import counted

    redecoder = None if resize is None else _redecoder(resize, mask_tokenizer, threshold, quiet)
    settings = BaselineSettings(baseline, seed or 0) if baseline else None
    read = (*results, *(baseline or ()), *(results if baseline else ()))  # results are read twice then
    with Processes.from_environment() as processes:
        first = processes.rank == 0
        with file_progress(*read, shown=not quiet) if first else nullcontext() as on_progress:
            options = (min_score, rows, redecoder, processes, on_progress, duplicates, settings)
            scored = evaluate_results(results[0], rules, root, boundary is not False, *options)
    if not first:
        return
    if scored.left_out:
        print(f"left out {counted(scored.left_out, 'result')} whose row has another one", file=sys.stderr)
    if scored.failures:
        failed = counted(len(scored.failures), "row")
        print(f"{failed} without an answer, wrong in every metric, the first: {scored.failures[0]}", file=sys.stderr)
    if report is not None:
        scored.save(report)
    numbers: dict[str, object] = {**scored.scores, "protocol": rules.name}
    if scored.baselines is not None:
        numbers["baselines"] = scored.baselines.to_dict()
    if not write_json_output(numbers, json_file):
        _print_report(scored)


def _redecoder(resize: str, mask_tokenizer: str | None, threshold: float | None, quiet: bool) -> Redecoder:
    from himtok_plugin.evaluation.protocols import RESIZES
    from himtok_plugin.evaluation.redecoding import Redecoder

    if resize not in RESIZES:
        raise ValueError(f"--resize: got {resize!r}, expected one of {', '.join(RESIZES)}")
    if mask_tokenizer is None:
        raise ValueError("--mask_tokenizer: got none with --resize, expected that of the checkpoint")
    return Redecoder(
        mask_tokenizer_from_option(mask_tokenizer, quiet=quiet),
        cast("Resize", resize),
        0.5 if threshold is None else threshold,
    )


@app.command()
def protocols() -> None:
    """List the protocols of `himtok eval`."""
    from rich.console import Console
    from rich.table import Table

    from himtok_plugin.evaluation.protocols import PROTOCOLS

    table = Table("protocol", "rules")
    for each in PROTOCOLS.values():
        table.add_row(each.name, each.summary)
    Console().print(table)


@app.command()
def calibrate(
    result: Annotated[
        Path,
        typer.Argument(metavar="OUT.jsonl", help="Result file of `swift infer --plugin himtok` on held-out samples."),
    ],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="DIR", help="Checkpoint of this run, or its folder mask_tokenizer/.")
    ],
    json_file: JsonOption = None,
    root: RootOption = None,
    quiet: QuietOption = False,
) -> None:
    """Calibrate the scores of masks.

    Fits a map from scores to expected IoU and writes it to calibration.json in the mask tokenizer's folder.
    """
    from himtok_plugin.evaluation.calibration_fit import fit_calibration, read_scored_masks
    from himtok_plugin.mask_tokenizer.released_weights import find_mask_tokenizer

    source = Path(find_mask_tokenizer(checkpoint))
    with file_progress(result, shown=not quiet) as on_progress:
        masks = read_scored_masks(result, root, on_progress=on_progress)
    calibration, report = fit_calibration(masks)
    path = calibration.save(source.parent if source.is_file() else source)
    if write_json_output(report, json_file):
        return
    print_table(report)
    print(path)


def _print_report(report: ScoreReport) -> None:
    if report.baselines is None:
        print_table(report.scores)
    else:
        _print_columns(report.baselines.columns(report.scores))
        for line in report.baselines.describe():
            print(line)
    for name, value in report.rules().items():
        if value != "-":
            print(f"{name}: {value}")
    for failure in report.failures:
        print(failure)
    for name, iou in report.per_class.items():
        print(f"IoU of {name}: {'-' if iou is None else f'{iou:.4f}'}")


def _print_columns(columns: Mapping[str, Mapping[str, float | int | None]]) -> None:
    """Print the metrics of the first column as a table, and those that the other ones have of them."""
    from rich.console import Console
    from rich.table import Table

    from himtok_plugin.evaluation.report import format_score

    table = Table("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in next(iter(columns.values())):
        table.add_row(metric, *(format_score(metric, scores.get(metric)) for scores in columns.values()))
    Console(markup=False, emoji=False).print(table)


def _print_comparison(compared: RunComparison) -> None:
    from rich.console import Console
    from rich.table import Table

    from himtok_plugin.validation import counted

    table = Table("metric", *(f"{name}" for name in ("a", "b", "b - a")), f"{compared.confidence:.0%} interval")
    for each in compared.differences:
        values = (each.a, each.b, each.difference)
        interval = "-"
        if each.interval is not None:
            interval = "{:+.4f} to {:+.4f}".format(*each.interval) + " *" * each.significant
        table.add_row(each.name, *("-" if value is None else f"{value:.4f}" for value in values), interval)
    Console().print(table)
    print(f"protocol: {compared.protocol.name}: {compared.protocol.summary}")
    draws = f"{compared.resamples} draws; *: the interval leaves out 0"
    print(f"{counted(len(compared.rows), 'row')} about {counted(compared.images, 'image')}, {draws}")
    if any(compared.errors):
        a, b = (counted(count, "row") for count in compared.errors)
        print(f"{a} of a and {b} of b with an error, which are wrong answers")
    for row in compared.rows[:5]:
        if row.b < row.a:
            print(f"row {row.key}: IoU {row.a:.3f} -> {row.b:.3f}")
