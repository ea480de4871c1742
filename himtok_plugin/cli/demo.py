"""`himtok demo`: masks out of an LMM at once, or everything from nothing."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import FAILED, ForceOption, app, check_writable, print_table


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("himtok_demo"),
    train: Annotated[
        bool, typer.Option("--train", help="Train all three stages from nothing first (2 CPU cores, half an hour).")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train for a look in three minutes; too short to learn much.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Segment held-out generated scenes with the checkpoint that ships, and draw the result."""
    check_writable(out, force)
    from himtok_plugin.demo.run import FULL, QUICK, CommandFailed, Demo, TrainingDemo

    with _demo_progress() as report:
        demo = TrainingDemo(out, QUICK if quick else FULL, report) if train or quick else Demo(out, report)
        try:
            scores = demo.run()
        except CommandFailed as failure:
            print("error:", failure, file=sys.stderr)
            raise typer.Exit(FAILED) from failure
    for name, values in scores.items():
        print(name)
        print_table(values)
    print(out / "demo.png")


@contextmanager
def _demo_progress():
    """A progress bar per part of the demo, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            if done == total == 1:  # the end of a command: whatever it counted, all of it is done
                total = progress.tasks[bars[name]].total or 1
                done = total
            progress.update(bars[name], completed=done, total=total)

        yield report
