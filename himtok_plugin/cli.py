"""The `himtok` command: arguments in, one call into the module that does the work, results out.

Contract: results go to stdout, progress and remarks to stderr. Bad input is one line `error: ...` on stderr and exit
status 2; 1 means that there was nothing to do (text without a mask), that rows were set aside or that a command of the
demo failed. Heavy modules are imported inside the verbs, so that `himtok --help` answers at once. Does not know how
anything is computed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .mask_tokenizer import MaskTokenizer

NOTHING_TO_DO = FAILED = SOME_REJECTED = 1  # exit statuses
BAD_INPUT, INTERRUPTED = 2, 130

app = typer.Typer(
    name="himtok",
    help="Segmentation masks as words: mask tokenizers, mask codes and scores. Training and inference are `swift "
    "sft|infer|... --plugin himtok`.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

MaskTokenizerOption = Annotated[
    str, typer.Option("--mask_tokenizer", help="Folder, himtok.pth or hub id; `default` is the one shipped.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write into OUT even if it is not empty.")]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; leaves by SystemExit."""
    try:
        status = app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        status = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except (ValueError, OSError) as error:
        status = _refuse(str(error))
    except Exception as error:
        # Usage errors belong to click, which typer ships a copy of: told by what they can do, not by their class.
        if not hasattr(error, "format_message"):
            raise
        status = _refuse(error.format_message())
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    size: Annotated[str, typer.Option("--size", help="tiny, small, base or large.")] = "tiny",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the configuration; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights that are drawn.")] = 0,
    force: ForceOption = False,
) -> None:
    """Write a mask tokenizer with fresh weights, to be trained."""
    fields = dict(_parse_override(text) for text in overrides or [])
    _check_writable(out, force)
    import torch

    from .mask_tokenizer import build_mask_tokenizer

    _quiet_unless_watched()
    torch.manual_seed(seed)
    with _libraries_on_stderr():
        build_mask_tokenizer(size, **fields).save_pretrained(out)
    print(out)


@app.command()
def convert(
    weights: Annotated[Path, typer.Argument(help="Released weights, himtok.pth.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    force: ForceOption = False,
) -> None:
    """Turn released weights into a mask tokenizer folder."""
    _check_writable(out, force)
    from .mask_tokenizer.conversion import load_released

    _quiet_unless_watched()
    with _libraries_on_stderr():
        load_released(weights).save_pretrained(out)
    print(out)


@app.command()
def encode(
    masks: Annotated[list[Path], typer.Argument(metavar="MASK...", help="Mask images.")],
    mask_tokenizer: MaskTokenizerOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per mask: mask, codes, text.")] = False,
) -> None:
    """Print the mask text of each mask image, one per line."""
    model = _load_mask_tokenizer(mask_tokenizer)
    from tqdm import tqdm

    from .mask_files import encode_files

    for result in tqdm(encode_files(masks, model), total=len(masks), unit="mask", disable=None, leave=False):
        entry = {"mask": str(result.path), "codes": result.codes, "text": result.text}
        tqdm.write(json.dumps(entry) if as_json else result.text)


@app.command()
def decode(
    text: Annotated[str, typer.Argument(metavar="TEXT|FILE|-", help="Text with masks, a file of it, or - for stdin.")],
    size: Annotated[tuple[int, int], typer.Option("--size", metavar="H W", help="Height and width of the pictures.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for mask_<i>.png.")],
    mask_tokenizer: MaskTokenizerOption = "default",
) -> None:
    """Write a PNG for each mask in a text and print its path."""
    text = _read_text(text)
    model = _load_mask_tokenizer(mask_tokenizer)
    from .mask_files import decode_to_files

    decoded = decode_to_files(text, size, model, output)
    for i, mask in enumerate(decoded):
        if not mask.span.complete:
            found = f"decoded from {len(mask.span.codes)} codes" if mask.path else "no usable code, no picture"
            print(f"mask {i} (characters {mask.span.start} to {mask.span.end}) is incomplete: {found}", file=sys.stderr)
        if mask.path:
            print(mask.path)
    if not any(mask.path for mask in decoded):
        print("no mask in the text", file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)


@app.command()
def tokenize(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Rows with masks, as for training.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The same rows with mask_codes.")],
    mask_tokenizer: MaskTokenizerOption = "default",
    batch_size: Annotated[int, typer.Option("--batch_size", help="Masks encoded at once.")] = 64,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", help="Processes that read masks; by default one less than cores.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Where masks are encoded: cpu, cuda, cuda:1; a GPU if there is one.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a bad row; otherwise it goes to OUT.jsonl.rejects.jsonl.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again, whatever is there.")] = False,
) -> None:
    """Put the codes of all masks into a dataset; run again after a kill, it goes on. Works under torchrun."""
    model = _load_mask_tokenizer(mask_tokenizer, device)
    from .offline_codes import write_codes

    workers = _free_cores() if num_workers is None else num_workers
    options = {"batch_size": batch_size, "num_workers": workers, "strict": strict, "overwrite": overwrite}
    first = _environment_int("RANK", 0) == 0
    with _row_progress(shown=first) as report:
        summary = write_codes(source, out, model, **options, on_progress=report)
    if first:
        _print_table(asdict(summary))
        if summary.finished_before == summary.rows:
            print(f"{out} is complete, there was nothing left to encode", file=sys.stderr)
        if summary.rejected:
            print(f"rejected rows: {summary.rejected}, with errors in {out}.rejects.jsonl", file=sys.stderr)
    if summary.rejected:
        raise typer.Exit(SOME_REJECTED)


@app.command("eval")
def evaluate(
    result: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Result file of `swift infer --plugin himtok`.")],
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the numbers as JSON; - prints only them.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where relative paths of true masks start from.")
    ] = None,
    min_score: Annotated[
        float, typer.Option("--min_score", help="Masks with a lower score do not count: to choose inference's own.")
    ] = 0.0,
) -> None:
    """Score predicted masks against true ones."""
    from tqdm import tqdm

    from .scoring import score_rows

    with tqdm(total=result.stat().st_size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        scores = score_rows(
            result, root, on_progress=lambda consumed: bar.update(consumed - bar.n), min_score=min_score
        )
    if _wrote_json(scores, json_file):
        return
    _print_table(scores)


@app.command()
def calibrate(
    result: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="Result of `swift infer --plugin himtok` on held-out rows.")
    ],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="DIR", help="Checkpoint that made it, or its mask_tokenizer/.")
    ],
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the numbers as JSON; - prints only them.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where relative paths of true masks start from.")
    ] = None,
) -> None:
    """Make scores of masks mean their expected IoU: writes calibration.json beside the mask tokenizer."""
    from tqdm import tqdm

    from .confidence import fit_on_results, scored_masks
    from .mask_tokenizer.conversion import find_mask_tokenizer

    source = Path(find_mask_tokenizer(checkpoint))
    with tqdm(total=result.stat().st_size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        masks = scored_masks(result, root, on_progress=lambda consumed: bar.update(consumed - bar.n))
    calibration, report = fit_on_results(masks)
    path = calibration.save(source.parent if source.is_file() else source)
    if _wrote_json(report, json_file):
        return
    _print_table(report)
    print(path)


bench_app = typer.Typer(help="Measure this package against plain implementations of the same.", rich_markup_mode=None)
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def bench() -> None:
    """Measure this package against plain implementations of the same."""


@bench_app.command("loss")
def bench_loss(
    batch: Annotated[int, typer.Option("--batch", help="Samples, each with one mask.")] = 8,
    length: Annotated[int, typer.Option("--length", help="Tokens of a sample.")] = 1024,
    vocabulary: Annotated[int, typer.Option("--vocabulary", help="Columns of the LMM's logits.")] = 151_936,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of a mask.")] = 32,
    size: Annotated[str, typer.Option("--size", help="Mask tokenizer: tiny, small, base or large.")] = "tiny",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the logits: bfloat16 or float32.")] = "bfloat16",
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs of each; the median counts.")] = 5,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the numbers as JSON; - prints only them.")
    ] = None,
) -> None:
    """Time and peak memory of stage 2's mask loss, forward and backward, beside a plain implementation of it."""
    import os

    # Remarks of the profiler, which reads the memory on a CPU; to be set before torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from tqdm import tqdm

    from .benchmark import LossBenchmark, bench_loss

    settings = LossBenchmark(batch, length, vocabulary, tokens, size, device, dtype, repeats)
    with tqdm(unit="run", disable=None, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = bench_loss(settings, report)
    if _wrote_json(result, json_file):
        return
    _print_loss_bench(result)


@bench_app.command("infer")
def bench_infer(
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", help="Mask tokenizer: tiny, small, base or large; may be repeated. By default tiny."),
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Masks at once; may be repeated. By default 1, 8 and 32.")
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", help="May be repeated. By default the CPU, and the GPU if there is one."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="Segmenting LMM to measure end to end as well.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs of each; the median counts.")] = 5,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the numbers as JSON; - prints only them.")
    ] = None,
) -> None:
    """Masks per second and latency of the mask tokenizer and, with a checkpoint, of questions and answers."""
    if checkpoint is not None and not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: expected the folder of a checkpoint, found none")
    from tqdm import tqdm

    from .benchmark_inference import BATCHES, InferenceBenchmark, bench_inference, default_devices

    names = tuple(devices or default_devices())
    settings = InferenceBenchmark(tuple(sizes or ("tiny",)), tuple(batches or BATCHES), names, repeats)
    ask = None
    if checkpoint is not None:
        with _libraries_on_stderr():
            from . import Segmenter

            ask = Segmenter.from_pretrained(checkpoint, device=names[-1], max_batch_size=max(settings.batches))
    with tqdm(unit="measurement", disable=None, leave=False) as bar, _libraries_on_stderr():

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        timings = bench_inference(settings, ask, str(checkpoint), names[-1], report)
    if _wrote_json([timing.to_dict() for timing in timings], json_file):
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "size", "device")
    for title in ("batch", "masks/s", "latency ms", "slowest ms"):
        table.add_column(title, justify="right")
    for timing in timings:
        name = Path(timing.size).name if timing.part == "end to end" else timing.size
        numbers = (f"{timing.masks_per_second:.1f}", f"{1e3 * timing.seconds:.2f}", f"{1e3 * timing.slowest:.2f}")
        table.add_row(timing.part, name, timing.device, str(timing.batch), *numbers)
    Console().print(table)


def _wrote_json(result: Any, target: str | None) -> bool:
    """Write a result where `--json` says; True for stdout, where nothing else is to be printed."""
    if target == "-":
        print(json.dumps(result))
    elif target is not None:
        Path(target).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return target == "-"


def _print_loss_bench(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["settings"].items()), highlight=False)
    table = Table("mask loss, forward + backward")
    for title in ("seconds", "peak extra MiB", "loss"):
        table.add_column(title, justify="right")
    for name in ("himtok", "plain"):
        row = result[name]
        table.add_row(name, f"{row['seconds']:.3f}", f"{row['peak_extra_mib']:.1f}", f"{row['loss']:.5f}")
    ratios = (f"{result[name]:.2f}" for name in ("ratio_seconds", "ratio_peak_extra_memory"))
    table.add_row("ratio plain / himtok", *ratios, "", style="bold")
    console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("himtok_demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A look in a few minutes; too short to learn much.")] = False,
    force: ForceOption = False,
) -> None:
    """Train all three stages on generated scenes, segment held-out ones, and draw the result."""
    _check_writable(out, force)
    from .demo import CommandFailed, run_demo

    with _demo_progress() as report:
        try:
            scores = run_demo(out, quick, report)
        except CommandFailed as failure:
            print("error:", failure, file=sys.stderr)
            raise typer.Exit(FAILED) from failure
    for name, values in scores.items():
        print(name)
        _print_table(values)
    print(out / "demo.png")


@contextmanager
def _row_progress(shown: bool):
    """A progress bar of rows, on stderr, that appears with the first report."""
    from tqdm import tqdm

    bar = None

    def report(finished: int, total: int, rejected: int) -> None:
        nonlocal bar
        if bar is None:  # rows of an earlier run say nothing about this one's speed
            bar = tqdm(total=total, initial=finished, unit="row", disable=None if shown else True, leave=False)
        if rejected:
            bar.set_postfix(rejected=rejected, refresh=False)
        bar.update(finished - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


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


def _parse_override(text: str) -> tuple[str, Any]:
    """`field=value` with the value as JSON (8, true, [1, 2]), or else as a plain word."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--set {text}: expected FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _check_writable(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder to write")
    if not force and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; give --force to write into it")


def _load_mask_tokenizer(name: str, device: str | None = None) -> MaskTokenizer:
    from .mask_tokenizer import MaskTokenizer

    device = _device(device)
    _quiet_unless_watched()
    with _libraries_on_stderr():
        return MaskTokenizer.from_pretrained(name).eval().to(device)


@contextmanager
def _libraries_on_stderr() -> Iterator[None]:
    """DeepSpeed, which transformers imports on loading and saving, logs to stdout, where our results go."""
    with redirect_stdout(sys.stderr):
        yield


def _device(name: str | None) -> str:
    """The device asked for, or a GPU if there is one; of several GPUs, under torchrun, this process's own."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}: expected cpu, cuda or cuda:NUMBER") from error
    if device.type != "cuda":
        return str(device)
    index = _environment_int("LOCAL_RANK", 0) % max(gpus, 1) if device.index is None else device.index
    if index >= gpus:
        raise ValueError(f"device is {name!r}: expected one of the {gpus} GPUs that there are, or cpu")
    return f"cuda:{index}"


def _free_cores() -> int:
    """Cores that are left for reading: all but one for each of torchrun's processes on this machine."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // _environment_int("LOCAL_WORLD_SIZE", 1) - 1, 0)


def _environment_int(name: str, default: int) -> int:
    import os

    return int(os.environ.get(name, default))


def _quiet_unless_watched() -> None:
    """No bars of transformers in logs and pipes, where stderr is for errors; at a terminal they stay."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _read_text(source: str) -> str:
    import os

    if source == "-":
        return sys.stdin.read()
    if os.path.isfile(source):  # unlike Path.is_file, takes a text too long for a file name
        return Path(source).read_text(encoding="utf-8")
    return source


def _print_table(scores: dict[str, float | int | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":  # `torchrun -m himtok_plugin.cli tokenize ...`
    main()
