"""`himtok bench loss|step|infer`: time and memory on this machine."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import (
    SIZE_NAMES,
    CandidatesOption,
    JsonOption,
    MaskTokenizerOption,
    QuietOption,
    app,
    check_range,
    mask_tokenizer_from_option,
    stdout_to_stderr,
    warn_if_untrained,
    write_json_output,
)
from .progress_bars import progress, progress_bar

bench_app = typer.Typer(rich_markup_mode=None)
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def bench() -> None:
    """Measure time and memory on this machine."""


@bench_app.command("loss")
def bench_loss(
    batch: Annotated[int, typer.Option("--batch", help="Number of samples, each with one mask.")] = 8,
    length: Annotated[int, typer.Option("--length", help="Tokens per sample.")] = 1024,
    vocabulary: Annotated[int, typer.Option("--vocabulary", help="Vocabulary size of the LMM.")] = 151_936,
    tokens: Annotated[int, typer.Option("--tokens", help="Mask tokens per mask.")] = 32,
    size: Annotated[str, typer.Option("--size", help=f"Size of the mask tokenizer: {SIZE_NAMES}.")] = "tiny",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Type of the logits: bfloat16 or float32.")] = "bfloat16",
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs; the median is reported.")] = 5,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure the mask loss of stage 2.

    Prints time and peak memory of forward and backward, compared with a plain implementation of the same formula.
    """
    _silence_profiler()
    from himtok_plugin.benchmarks.mask_loss import LossBenchmark, measure_mask_loss

    settings = LossBenchmark(batch, length, vocabulary, tokens, size, device, dtype, repeats)
    with progress("run", not quiet) as report:
        result = measure_mask_loss(settings, report)
    if write_json_output(result, json_file):
        return
    _print_loss_bench(result)


@bench_app.command("step")
def bench_step(
    lmm: Annotated[str, typer.Option("--lmm", help="LMM with random weights: tiny, 1b or 2b.")] = "2b",
    size: Annotated[str, typer.Option("--size", help=f"Size of the mask tokenizer: {SIZE_NAMES}.")] = "large",
    batch: Annotated[int, typer.Option("--batch", help="Number of samples, each with an image and a mask.")] = 8,
    length: Annotated[int, typer.Option("--length", help="Tokens of the longest sample.")] = 1024,
    tokens: Annotated[int, typer.Option("--tokens", help="Mask tokens per mask.")] = 32,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Type of the LMM's weights: bfloat16 or float32.")] = "bfloat16",
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient_checkpointing/--no_gradient_checkpointing", help="Recompute activations to save memory."
        ),
    ] = True,
    peak_tflops: Annotated[
        float | None,
        typer.Option("--peak_tflops", help="Peak of the device. Default: by its data sheet."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed steps of each kind; the median is reported.")] = 5,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure a whole training step of stage 2.

    Prints tokens per second, peak memory, the mask loss's share of the time and the FLOPs utilisation.
    """
    _silence_profiler()
    from himtok_plugin.benchmarks.training_step import StepBenchmark, measure_training_step

    settings = StepBenchmark(
        lmm, size, batch, length, tokens, device, dtype, gradient_checkpointing, peak_tflops, repeats
    )
    with progress("step", not quiet) as report, stdout_to_stderr():
        result = measure_training_step(settings, report)
    if not write_json_output(result, json_file):
        _print_step_bench(result)


@bench_app.command("infer")
def bench_infer(
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", help=f"Size of the mask tokenizer: {SIZE_NAMES}; may be repeated. Default: tiny."),
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Masks at once; may be repeated. Default: 1, 8 and 32.")
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", help="May be repeated. Default: the CPU, and the GPU if there is one."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="Segmenting LMM, to measure questions and answers as well."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs; the median is reported.")] = 5,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure encoding, decoding and inference.

    Prints masks per second and latency of the mask tokenizer and, with --checkpoint, of questions and answers.
    """
    if checkpoint is not None and not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: expected the folder of a checkpoint, found none")
    from himtok_plugin.benchmarks.inference import (
        BATCHES,
        InferenceBenchmark,
        default_devices,
        measure_inference,
    )

    names = tuple(devices or default_devices())
    settings = InferenceBenchmark(tuple(sizes or ("tiny",)), tuple(batches or BATCHES), names, repeats)
    ask = None
    if checkpoint is not None:
        with stdout_to_stderr():
            from himtok_plugin import Segmenter

            ask = Segmenter.from_pretrained(checkpoint, device=names[-1], max_batch_size=max(settings.batches))
    with progress("measurement", not quiet) as report, stdout_to_stderr():
        timings = measure_inference(settings, ask, str(checkpoint), names[-1], report)
    if write_json_output([timing.to_dict() for timing in timings], json_file):
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


@bench_app.command("masks")
def bench_masks(
    rows: Annotated[Path, typer.Argument(metavar="MASKS.jsonl", help="Samples with `masks`, as for stage 1.")],
    mask_tokenizer: MaskTokenizerOption = "default",
    candidates: CandidatesOption = 1,
    device: Annotated[str | None, typer.Option("--device", help="Default: the GPU if there is one.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", callback=check_range(1), help="Measure the first masks only.")
    ] = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure a mask tokenizer on masks.

    Prints the mean IoU by number of tokens and by COCO's sizes, boundary F, used codes and masks per second.
    """
    model = mask_tokenizer_from_option(mask_tokenizer, device, quiet)
    warn_if_untrained(model)
    from himtok_plugin.benchmarks.reconstruction import iter_masks, measure_mask_tokenizer

    with progress_bar("mask", shown=not quiet) as bar:
        masks = islice(iter_masks(rows), limit)
        result = measure_mask_tokenizer(model, masks, candidates, lambda done: bar.update(done, None))
    if not write_json_output(result, json_file):
        _print_masks_bench(result)


def _silence_profiler() -> None:
    """Silence the profiler's log, which measures memory on a CPU; must be called before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _print_step_bench(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["settings"].items()), highlight=False)
    parts = ", ".join(f"{count / 1e6:,.0f} M {name}" for name, count in result["parameters"].items())
    console.print(f"{parts}; {result['tokens']} tokens and {result['tflops']:.3g} TFLOP a step", highlight=False)
    table = Table("training step")
    for title in ("seconds", "without mask loss", "mask loss %", "tokens/s", "peak GiB", "MFU %"):
        table.add_column(title, justify="right")
    for name in ("padded", "packed"):
        row = result[name]
        used = row["model_flops_utilisation"]
        table.add_row(
            name,
            f"{row['seconds']:.3f}",
            f"{row['seconds_without_mask_loss']:.3f}",
            f"{100 * row['mask_loss_share']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['peak_gib']:.2f}",
            "-" if used is None else f"{100 * used:.1f}",
        )
    console.print(table)


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


def _print_masks_bench(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("mean IoU")
    counts = list(result["mean_iou"]["all"])
    for n in counts:
        table.add_column(f"{n} tokens" if n > 1 else "1 token", justify="right")
    for name, found in result["mean_iou"].items():
        number = result["scores"][name][counts[0]]["samples"]
        table.add_row(f"{name} ({number})", *(f"{found[n]:.3f}" for n in counts))
    console.print(table)
    figures = Table("figure", show_header=False)
    figures.add_column(justify="right")
    full = result["scores"]["all"][counts[-1]]
    figures.add_row("boundary F", f"{full['boundary_F']:.3f}")
    figures.add_row("used code vectors", f"{result['used_codes']}")
    figures.add_row("perplexity", f"{result['perplexity']:.0f}")
    figures.add_row("distinct codes of a mask", f"{result['distinct_codes']:.1f}")
    figures.add_row("encoded masks/s", f"{result['encoded_per_second']:.0f}")
    figures.add_row("decoded masks/s", f"{result['decoded_per_second']:.0f}")
    console.print(figures)
