"""What the verbs of `himtok` share: the command itself, options that mean the same everywhere, what is printed where.

Contract: imports nothing heavy. Does not know any verb.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from himtok_plugin.jobs.processes import environment_int
from himtok_plugin.jobs.worker_pool import usable_cores
from himtok_plugin.mask_tokenizer.sizes import SIZES

if TYPE_CHECKING:
    from himtok_plugin.mask_tokenizer import MaskTokenizer

NOTHING_TO_DO = FAILED = SOME_REJECTED = 1  # exit statuses
BAD_INPUT, INTERRUPTED = 2, 130
SIZE_NAMES = " or ".join(", ".join(SIZES).rsplit(", ", 1))  # of mask tokenizers

app = typer.Typer(
    name="himtok",
    help="Segmentation masks as words: mask tokenizers, mask codes and scores. Training and inference are `swift "
    "sft|infer|... --plugin himtok`.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def within(least: float, most: float | None = None) -> Callable[[float | None], float | None]:
    """Callback of an option that is a number in [least, most]. typer's own `min` and `max` name no value, and let NaN
    pass."""
    expected = f"at least {least}" if most is None else f"a number in [{least}, {most}]"

    def checked(value: float | None) -> float | None:
        if value is not None and not (least <= value and (most is None or value <= most)):
            raise typer.BadParameter(f"got {value}, expected {expected}")
        return value

    return checked


check_seed = within(0, 2**32 - 1)  # that every generator of numpy and torch takes

MaskTokenizerOption = Annotated[
    str, typer.Option("--mask_tokenizer", help="Folder, himtok.pth or hub id; `default` is the one shipped.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write into OUT even if it is not empty.")]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the numbers as JSON; - prints only them.")
]
RootOption = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Where relative paths of true masks start from.")
]


def print_table(scores: dict[str, float | int | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)


def write_json_output(result: Any, target: str | None) -> bool:
    """Write a result where `--json` says; True for stdout, where nothing else is to be printed."""
    if target == "-":
        print(json.dumps(result))
    elif target is not None:
        Path(target).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return target == "-"


def check_writable(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder to write")
    if not force and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; give --force to write into it")


def mask_tokenizer_from_option(name: str, device: str | None = None) -> MaskTokenizer:
    from himtok_plugin.mask_tokenizer import MaskTokenizer

    device = choose_device(device)
    hide_progress_bars_in_pipes()
    with stdout_to_stderr():
        return MaskTokenizer.from_pretrained(name).eval().to(device)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """DeepSpeed, which transformers imports on loading and saving, logs to stdout, where our results go."""
    with redirect_stdout(sys.stderr):
        yield


def hide_progress_bars_in_pipes() -> None:
    """No bars of transformers in logs and pipes, where stderr is for errors; at a terminal they stay."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def choose_device(name: str | None) -> str:
    """The device asked for, or a GPU if there is one; of several GPUs, under torchrun, this process's own."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}: expected cpu, cuda or cuda:NUMBER") from error
    if device.type != "cuda":
        return str(device)
    index = environment_int("LOCAL_RANK", 0) % max(gpus, 1) if device.index is None else device.index
    if index >= gpus:
        raise ValueError(f"device is {name!r}: expected one of the {gpus} GPUs that there are, or cpu")
    return f"cuda:{index}"


def count_free_cores() -> int:
    """Cores that are left for reading: all but one for each of torchrun's processes on this machine."""
    return max(usable_cores() // environment_int("LOCAL_WORLD_SIZE", 1) - 1, 0)


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields what is to be called with (done, total)."""
    from tqdm import tqdm

    with tqdm(unit=unit, disable=None, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


@contextmanager
def file_progress(*paths: Path) -> Iterator[Callable[[int], None]]:
    """A bar on stderr of files that are being read, one after the other; yields what is to be called with the bytes
    read so far."""
    from tqdm import tqdm

    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        yield lambda consumed: bar.update(consumed - bar.n)
