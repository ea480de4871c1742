"""`himtok init|convert|encode|decode|tokenize`: mask tokenizers, and masks to codes and back."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from himtok_plugin.jobs.processes import environment_int

from .common import (
    NOTHING_TO_DO,
    SIZE_NAMES,
    SOME_REJECTED,
    ForceOption,
    MaskTokenizerOption,
    app,
    check_seed,
    check_writable,
    count_free_cores,
    hide_progress_bars_in_pipes,
    mask_tokenizer_from_option,
    print_table,
    progress,
    stdout_to_stderr,
)

if TYPE_CHECKING:
    from himtok_plugin.internvl_chat.convert import ConversionReport
    from himtok_plugin.mask_tokenizer import MaskTokenizer

WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

CandidatesOption = Annotated[
    int,
    typer.Option(
        "--candidates",
        help="Nearest codes tried at every position; the one stays whose mask is closest. 1: the nearest, untried.",
    ),
]


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    size: Annotated[str, typer.Option("--size", help=f"{SIZE_NAMES}.")] = "tiny",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the configuration; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights that are drawn.", callback=check_seed)] = 0,
    force: ForceOption = False,
) -> None:
    """Write a mask tokenizer with fresh weights, to be trained."""
    fields = dict(_parse_override(text) for text in overrides or [])
    check_writable(out, force)
    import torch

    from himtok_plugin.mask_tokenizer import build_mask_tokenizer

    hide_progress_bars_in_pipes()
    torch.manual_seed(seed)
    with stdout_to_stderr():
        build_mask_tokenizer(size, **fields).save_pretrained(out)
    print(out)


@app.command()
def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="InternVL chat model (folder or hub id), or the mask tokenizer alone: himtok.pth or its folder."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    skip_tokenizer: Annotated[
        bool, typer.Option("--skip_tokenizer", help="Convert weights and configuration of a chat model alone.")
    ] = False,
    image_token_id: Annotated[
        int | None,
        typer.Option("--image_token_id", help="Id of <IMG_CONTEXT>, where no tokenizer file of the model says it."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Turn the authors' checkpoint into a folder that transformers, ms-swift and vLLM load."""
    with stdout_to_stderr():
        from himtok_plugin.internvl_chat.convert import convert_chat_model, convert_released_mask_tokenizer
        from himtok_plugin.internvl_chat.output_folder import check_output_is_apart

    if Path(model).exists():  # first, since the advice to give --force would be wrong
        check_output_is_apart(Path(model), out)
    check_writable(out, force)
    hide_progress_bars_in_pipes()
    if (released := _released_file(Path(model))) is not None:
        given = {"--skip_tokenizer": skip_tokenizer, "--image_token_id": image_token_id is not None}
        if any(given.values()):
            names = " and ".join(name for name, is_given in given.items() if is_given)
            raise ValueError(f"{names}: expected only with a chat model, {released} is a mask tokenizer alone")
        with stdout_to_stderr():
            convert_released_mask_tokenizer(released, out)
        print(out)
        return
    with stdout_to_stderr(), progress("tensor") as report:
        done = convert_chat_model(model, out, skip_tokenizer, image_token_id, report)
    _print_unknown_settings(done)
    print(out)


def _print_unknown_settings(done: ConversionReport) -> None:
    """What a converted chat model's files did not say."""
    from himtok_plugin.internvl_chat.processor import TURN_END
    from himtok_plugin.internvl_chat.fast_tokenizer import IMAGE_CONTEXT

    if done.codebook_size is None:
        print("no mask tokenizer in it: name one with --mask_tokenizer when it is used", file=sys.stderr)
    if not done.is_image_token_known:
        assumed = f"config.json has {done.image_token_id}, as InternVL2.5 models do"
        if done.image_token_id >= done.vocabulary_size:
            assumed += f", but this vocabulary has only {done.vocabulary_size} rows"
        unknown = f"image_token_id: no tokenizer file tells the id of {IMAGE_CONTEXT}"
        print(f"{unknown}; {assumed} (--image_token_id)", file=sys.stderr)
    if not done.is_turn_end_known:
        unknown = f"eos_token_id: no tokenizer file tells the id of {TURN_END}, with which answers end"
        print(f"{unknown}; generation_config.json has that of the configuration alone", file=sys.stderr)


def _released_file(model: Path) -> Path | None:
    """The mask tokenizer's weights file where it is all that there is; None where a chat model is to be looked for."""
    if model.is_file() or model.suffix in WEIGHTS_SUFFIXES:
        return model
    from himtok_plugin.mask_tokenizer.released_weights import RELEASED_FILE

    released = model / RELEASED_FILE
    return released if released.is_file() and not (model / "config.json").exists() else None


@app.command()
def encode(
    masks: Annotated[list[Path], typer.Argument(metavar="MASK...", help="Mask images.")],
    mask_tokenizer: MaskTokenizerOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per mask: mask, codes, text.")] = False,
    candidates: CandidatesOption = 1,
) -> None:
    """Print the mask text of each mask image, one per line."""
    model = mask_tokenizer_from_option(mask_tokenizer)
    _warn_of_untrained(model)
    from tqdm import tqdm

    from himtok_plugin.prediction.mask_files import encode_files

    encoded = encode_files(masks, model, candidates)
    for result in tqdm(encoded, total=len(masks), unit="mask", disable=None, leave=False):
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
    model = mask_tokenizer_from_option(mask_tokenizer)
    _warn_of_untrained(model)
    from himtok_plugin.prediction.mask_files import decode_to_files

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
    candidates: CandidatesOption = 1,
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
    model = mask_tokenizer_from_option(mask_tokenizer, device)
    from himtok_plugin.data.offline_codes import write_codes

    workers = count_free_cores() if num_workers is None else num_workers
    options = {"candidates": candidates, "batch_size": batch_size, "num_workers": workers}
    options |= {"strict": strict, "overwrite": overwrite}
    first = environment_int("RANK", 0) == 0
    with _row_progress(shown=first) as report:
        summary = write_codes(source, out, model, **options, on_progress=report)
    if first:
        print_table(asdict(summary))
        if summary.finished_before == summary.rows:
            print(f"{out} is complete, there was nothing left to encode", file=sys.stderr)
        if summary.rejected:
            print(f"rejected rows: {summary.rejected}, with errors in {out}.rejects.jsonl", file=sys.stderr)
    if summary.rejected:
        raise typer.Exit(SOME_REJECTED)


def _warn_of_untrained(model: MaskTokenizer) -> None:
    """A single mask may be looked at all the same; nobody trains on what is printed, as on what `tokenize` writes."""
    if not model.config.codebook_ready:
        what = "codebook_ready is false: it has not been trained, and its codes mean nothing"
        print(f"warning: mask tokenizer {model.name_or_path!r}: {what}", file=sys.stderr)


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


def _parse_override(text: str) -> tuple[str, Any]:
    """`field=value` with the value as JSON (8, true, [1, 2]), or else as a plain word."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--set {text}: expected FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read_text(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    if os.path.isfile(source):  # unlike Path.is_file, takes a text too long for a file name
        return Path(source).read_text(encoding="utf-8")
    return source
