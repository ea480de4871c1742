"""What the verbs of `himtok` share: the command, common options and output. Imports nothing heavy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from himtok_plugin import __version__
from himtok_plugin.files.output_file import check_replaceable_json
from himtok_plugin.jobs.processes import environment_int
from himtok_plugin.jobs.worker_pool import count_usable_cores
from himtok_plugin.mask_tokenizer.sizes import SIZES

if TYPE_CHECKING:
    from himtok_plugin.mask_tokenizer import MaskTokenizer

NOTHING_TO_DO = FAILED = SOME_REJECTED = 1  # exit statuses
BAD_INPUT, INTERRUPTED = 2, 130
SIZE_NAMES = " or ".join(", ".join(SIZES).rsplit(", ", 1))  # sizes of mask tokenizers, for help texts

# Verbs as `himtok --help` lists them: what a newcomer needs first. Others follow in the order of their modules.
VERB_ORDER = (
    *("demo", "segment", "app", "prepare", "tokenize", "encode", "decode", "eval", "protocols", "calibrate", "export"),
    *("init", "shorten", "convert", "split-adapter", "bench"),
)


class VerbGroup(TyperGroup):
    """The verbs, in the order of `VERB_ORDER`."""

    def list_commands(self, ctx) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: VERB_ORDER.index(name) if name in VERB_ORDER else len(VERB_ORDER))


app = typer.Typer(
    name="himtok",
    cls=VerbGroup,
    help="Segment images, prepare data, convert masks to mask tokens and back, and evaluate segmentation results. "
    "Training and inference are `swift sft|infer|... --plugin himtok`.",
    epilog="`himtok COMMAND -h` explains a command.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print("himtok", __version__)
        raise typer.Exit


@app.callback()
def himtok(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself; its help is that of `app`."""


def check_range(least: float, most: float | None = None) -> Callable[[float | None], float | None]:
    """Callback of an option that must be a number in [least, most].

    typer's own `min` and `max` accept NaN and leave the value out of the error message.
    """
    expected = f"at least {least}" if most is None else f"a number in [{least}, {most}]"

    def checked(value: float | None) -> float | None:
        if value is not None and not (least <= value and (most is None or value <= most)):
            raise typer.BadParameter(f"got {value}, expected {expected}")
        return value

    return checked


check_seed = check_range(0, 2**32 - 1)  # the seeds that numpy and torch accept

MaskTokenizerOption = Annotated[
    str,
    typer.Option(
        "--mask_tokenizer",
        help="Folder, himtok.pth or hub id; `default` ships with the package, `demo` is that of the shipped LMM.",
    ),
]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")]
CandidatesOption = Annotated[
    int,
    typer.Option(
        "--candidates",
        help="Search for codes that describe the mask better, for example with 8: codes tried at every position, or "
        "sums of code vectors kept by a beam search (code scheme `box`). With 1 the nearest code is taken.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace what an earlier run of this command has written to OUT.")
]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write the result as JSON; - prints it to stdout."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bars.")]
RootOption = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Folder of relative paths of true masks.")
]


def print_table(scores: Mapping[str, float | int | None]) -> None:
    """Print names and values as a table; None as `-`."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
    Console(markup=False, emoji=False).print(table)  # names are not markup


def write_json_output(result: Any, target: str | None) -> bool:
    """Write a result to the file of `--json`, or print it for `-`; return True if it was printed.

    Then stdout holds JSON alone and the caller must not print anything else.
    """
    if target == "-":
        print(json.dumps(result))
    elif target is not None:
        check_replaceable_json(Path(target))
        Path(target).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return target == "-"


def mask_tokenizer_from_option(name: str, device: str | None = None, quiet: bool = False) -> MaskTokenizer:
    """Load the mask tokenizer of `--mask_tokenizer` in evaluation mode, on the device of `--device`."""
    from himtok_plugin.mask_tokenizer import MaskTokenizer

    device = choose_device(device)
    bound_threads()
    hide_loading_bars(quiet)
    with stdout_to_stderr():
        return MaskTokenizer.from_pretrained(name).eval().to(device)


def bound_threads() -> None:
    """Let torch compute with no more threads than cores that this process may use, for which the others would wait."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), count_usable_cores()))


def warn_if_untrained(model: MaskTokenizer) -> None:
    """Warn about an untrained mask tokenizer; only `tokenize`, whose output is trained on, rejects it."""
    if not model.config.codebook_ready:
        what = "codebook_ready is false: it is not trained, its codes carry no information"
        print(f"warning: mask tokenizer {model.name_or_path!r}: {what}", file=sys.stderr)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send stdout to stderr: DeepSpeed, imported by transformers on loading and saving, logs to stdout."""
    with redirect_stdout(sys.stderr):
        yield


def hide_loading_bars(quiet: bool = False) -> None:
    """Disable the progress bars of transformers with `--quiet`, and unless stderr is a terminal."""
    from transformers.utils import logging

    if quiet or not sys.stderr.isatty():
        logging.disable_progress_bar()


def choose_device(name: str | None) -> str:
    """The device of `--device`; by default the GPU if there is one, under torchrun that of this process.

    Raises:
        ValueError: no such device.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device: got {name!r}, expected cpu, cuda or cuda:NUMBER") from error
    if device.type != "cuda":
        return str(device)
    index = environment_int("LOCAL_RANK", 0) % max(gpus, 1) if device.index is None else device.index
    if index >= gpus:
        raise ValueError(f"device: got {name!r}, expected cpu or one of the {gpus} GPUs of this machine")
    return f"cuda:{index}"


def count_free_cores() -> int:
    """Cores for reading: this process's share of the cores under torchrun, less one for the process itself."""
    return max(count_usable_cores() // environment_int("LOCAL_WORLD_SIZE", 1) - 1, 0)
