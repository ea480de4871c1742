"""Progress bars of the `himtok` command.

Contract: bars are on stderr, only if that is a terminal, and vanish when the work is done. A pipe or a file gets
nothing, nor does a terminal with `--quiet` (`common.QuietOption`, passed on as `shown`). A bar is there before the
first report and shows the time elapsed, so that slow steps can be told from a command that hangs. What is printed to
stdout under a bar goes through `ProgressBar.print`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

BYTES = "B"  # the unit that is shown in kB, MB and so on


class ProgressBar:
    """A bar that is shown.

    Args:
        bars: the display, which has been started.
        unit: what is counted.
        total: number of units; None if it is not known yet.
    """

    def __init__(self, bars: Progress, unit: str, total: int | None) -> None:
        self._bars = bars
        self._unit = unit
        self._task = bars.add_task(unit, total=total)

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show that `done` units are done in all, and a further note; `total` replaces the number of units."""
        description = f"{self._unit}, {note}" if note else self._unit
        self._bars.update(self._task, completed=done, description=description)
        if total is not None:
            self._bars.update(self._task, total=total)

    def print(self, line: str) -> None:
        """Print a line to stdout; where that is the same terminal, the bar moves below it."""
        shares_terminal = not self._bars.disable and sys.stdout.isatty()
        if shares_terminal:
            self._bars.stop()
        print(line, flush=shares_terminal)
        if shares_terminal:
            self._bars.start()


@contextmanager
def progress_bar(unit: str, total: int | None = None, shown: bool = True) -> Iterator[ProgressBar]:
    """A progress bar.

    Args:
        unit: what is counted; `BYTES` for bytes.
        total: number of units, if known.
        shown: whether this process shows it, if stderr is a terminal.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    count = DownloadColumn() if unit == BYTES else MofNCompleteColumn()
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), count, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True, markup=False)
    hidden = not shown or not sys.stderr.isatty()
    bars = Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=hidden)
    # Where nothing is shown, old releases of rich print an empty line when a display stops.
    with nullcontext() if hidden else bars:
        yield ProgressBar(bars, unit, total)


@contextmanager
def progress(unit: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields the function to call with (done, total)."""
    with progress_bar(unit, shown=shown) as bar:
        yield bar.update


@contextmanager
def file_progress(*paths: Path, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar for reading files in turn; yields the function to call with the bytes read so far."""
    with progress_bar(BYTES, sum(path.stat().st_size for path in paths), shown) as bar:
        yield bar.update
