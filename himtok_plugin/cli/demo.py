"""`himtok demo`: segment generated scenes with the shipped checkpoint, or train one from scratch first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from himtok_plugin.files.output_folder import OutputFolder

from .common import FAILED, ForceOption, OutFolder, QuietOption, app, print_table


@app.command()
def demo(
    out: OutFolder = Path("himtok_demo"),
    train: Annotated[
        bool,
        typer.Option("--train", help="First train all three stages from scratch (half an hour on 2 CPU cores)."),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Like --train in three minutes; the model does not learn much in this time."),
    ] = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Segment generated scenes with the shipped checkpoint.

    Writes scores and a picture of images, true masks and predicted masks to OUT.
    """
    from himtok_plugin.demo.run import CommandFailed, Demo
    from himtok_plugin.demo.training import FULL, QUICK, TrainingDemo

    writes = TrainingDemo.WRITES if train or quick else Demo.WRITES
    OutputFolder(out, "himtok demo").claim(writes, force)

    with _demo_progress(shown=not quiet) as report:
        try:
            if train or quick:
                scores = TrainingDemo(out, QUICK if quick else FULL, report).run()
            else:
                scores = Demo(out, report).run()
        except CommandFailed as failure:
            print("error:", failure, file=sys.stderr)
            raise typer.Exit(FAILED) from failure
    for name, values in scores.items():
        print(name)
        print_table(values)
    print(out / "demo.png")


@contextmanager
def _demo_progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for each step of the demo; yields the function to call with (name, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        bars: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            if done == total == 1:  # the command has ended, whatever it counted before
                total = progress.tasks[bars[name]].total or 1
                done = total
            progress.update(bars[name], completed=done, total=total)

        yield report
