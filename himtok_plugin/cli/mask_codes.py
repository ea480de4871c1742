"""`himtok init|shorten|convert|encode|tokenize`: create mask tokenizers, and convert masks to codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from himtok_plugin.files.output_folder import OutputFolder
from himtok_plugin.jobs.processes import environment_int

from .common import (
    SIZE_NAMES,
    SOME_REJECTED,
    CandidatesOption,
    ForceOption,
    MaskTokenizerOption,
    OutFolder,
    QuietOption,
    app,
    check_seed,
    count_free_cores,
    hide_loading_bars,
    mask_tokenizer_from_option,
    print_table,
    stdout_to_stderr,
    warn_if_untrained,
)
from .progress_bars import progress, progress_bar

if TYPE_CHECKING:
    from himtok_plugin.internvl_chat.convert import ConversionReport

WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


@app.command()
def init(
    out: OutFolder,
    size: Annotated[str, typer.Option("--size", help=f"{SIZE_NAMES}.")] = "tiny",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a configuration field; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random weights.", callback=check_seed)] = 0,
    force: ForceOption = False,
) -> None:
    """Create an untrained mask tokenizer.

    Writes a folder with random weights, the start of stage 1.
    """
    fields = dict(_parse_override(text) for text in overrides or [])
    folder = OutputFolder(out, "himtok init")
    folder.check(force)
    import torch

    from himtok_plugin.mask_tokenizer import build_mask_tokenizer

    hide_loading_bars()
    torch.manual_seed(seed)
    with stdout_to_stderr(), folder.fill() as new:
        build_mask_tokenizer(size, **fields).save_pretrained(new)
    print(out)


@app.command()
def shorten(
    out: OutFolder,
    num_mask_tokens: Annotated[
        int,
        typer.Option("--num_mask_tokens", help="Codes per mask: more than the box takes, at most as many as before."),
    ],
    mask_tokenizer: MaskTokenizerOption = "default",
    force: ForceOption = False,
) -> None:
    """Make a mask tokenizer with fewer codes per mask.

    Its codes are the first of those of a mask tokenizer with the code scheme "box", so nothing is trained again.
    """
    folder = OutputFolder(out, "himtok shorten")
    folder.check(force)
    model = mask_tokenizer_from_option(mask_tokenizer, "cpu", quiet=True)
    with stdout_to_stderr(), folder.fill() as new:
        model.shorten(num_mask_tokens).save_pretrained(new)
    print(out)


@app.command()
def convert(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="InternVL chat model (folder or hub id), or the mask tokenizer alone: himtok.pth or its folder.",
        ),
    ],
    out: OutFolder,
    skip_tokenizer: Annotated[
        bool,
        typer.Option("--skip_tokenizer", help="Do not convert the text tokenizer of a chat model."),
    ] = False,
    image_token_id: Annotated[
        int | None,
        typer.Option("--image_token_id", help="Id of <IMG_CONTEXT>, if the model's tokenizer files do not have it."),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert the authors' HiMTok checkpoint.

    Writes a folder that transformers, ms-swift and vLLM can load.
    """
    with stdout_to_stderr():
        from himtok_plugin.internvl_chat.convert import convert_chat_model, convert_released_mask_tokenizer
        from himtok_plugin.internvl_chat.output_folder import check_output_is_apart, get_output_folder

    if Path(model).exists():  # before the check whose advice to pass --force would be wrong here
        check_output_is_apart(Path(model), out)
    get_output_folder(out).check(force)
    hide_loading_bars(quiet)
    if (released := _released_file(Path(model))) is not None:
        given = {"--skip_tokenizer": skip_tokenizer, "--image_token_id": image_token_id is not None}
        if any(given.values()):
            names = " and ".join(name for name, is_given in given.items() if is_given)
            raise ValueError(f"{names}: expected only with a chat model, but {released} is a mask tokenizer")
        with stdout_to_stderr():
            convert_released_mask_tokenizer(released, out)
        print(out)
        return
    with stdout_to_stderr(), progress("tensor", not quiet) as report:
        done = convert_chat_model(model, out, skip_tokenizer, image_token_id, report)
    _print_unknown_settings(done)
    print(out)


def _print_unknown_settings(done: ConversionReport) -> None:
    """Warn about settings that the files of a chat model do not contain."""
    from himtok_plugin.internvl_chat.fast_tokenizer import IMAGE_CONTEXT
    from himtok_plugin.internvl_chat.processor import TURN_END

    if done.codebook_size is None:
        print("the checkpoint has no mask tokenizer: pass --mask_tokenizer when you use it", file=sys.stderr)
    if not done.is_image_token_known:
        assumed = f"config.json gets {done.image_token_id}, the id of InternVL2.5 models"
        if done.image_token_id >= done.vocabulary_size:
            assumed += f", but this vocabulary has only {done.vocabulary_size} rows"
        unknown = f"image_token_id: no tokenizer file has the id of {IMAGE_CONTEXT}"
        print(f"{unknown}; {assumed}; set it with --image_token_id", file=sys.stderr)
    if not done.is_turn_end_known:
        unknown = f"eos_token_id: no tokenizer file has the id of {TURN_END}, which ends answers"
        print(f"{unknown}; generation_config.json has only the id of the configuration", file=sys.stderr)


def _released_file(model: Path) -> Path | None:
    """The weights file if `model` is a mask tokenizer without an LMM; None if it may be a chat model."""
    if model.is_file() or model.suffix in WEIGHTS_SUFFIXES:
        return model
    from himtok_plugin.mask_tokenizer.released_weights import RELEASED_FILE

    released = model / RELEASED_FILE
    return released if released.is_file() and not (model / "config.json").exists() else None


@app.command()
def encode(
    masks: Annotated[list[Path], typer.Argument(metavar="MASK", help="Mask images.")],
    mask_tokenizer: MaskTokenizerOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per mask: mask, codes, text.")] = False,
    candidates: CandidatesOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Encode mask images to mask text.

    Prints a line per image, such as <|mt_start|><|mt_7|><|mt_3|><|mt_end|>.
    """
    model = mask_tokenizer_from_option(mask_tokenizer, quiet=quiet)
    warn_if_untrained(model)
    from himtok_plugin.prediction.mask_files import encode_files

    encoded = encode_files(masks, model, candidates)
    with progress_bar("mask", len(masks), not quiet) as bar:
        for done, result in enumerate(encoded, start=1):
            entry = {"mask": str(result.path), "codes": result.codes, "text": result.text}
            bar.print(json.dumps(entry) if as_json else result.text)
            bar.update(done)


@app.command()
def tokenize(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Training samples with masks.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="File to write: the same samples with mask_codes.")],
    mask_tokenizer: MaskTokenizerOption = "default",
    candidates: CandidatesOption = 1,
    batch_size: Annotated[int, typer.Option("--batch_size", help="Masks encoded at once.")] = 64,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", help="Processes that read masks. Default: one less than cores.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... Default: the GPU if there is one.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a bad sample instead of writing it to OUT.jsonl.rejects.jsonl.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again even if OUT.jsonl exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Encode all masks of a dataset.

    Writes the samples with the codes of their masks, so that training needs no encoder. Run it again to continue after
    an interruption. Works under torchrun. Exit status 1 if samples were rejected.
    """
    model = mask_tokenizer_from_option(mask_tokenizer, device, quiet)
    from himtok_plugin.data.offline_codes import write_codes

    workers = count_free_cores() if num_workers is None else num_workers
    first = environment_int("RANK", 0) == 0
    with _row_progress(shown=first and not quiet) as report:
        summary = write_codes(
            source,
            out,
            model,
            candidates=candidates,
            batch_size=batch_size,
            num_workers=workers,
            strict=strict,
            overwrite=overwrite,
            on_progress=report,
        )
    if first:
        print_table(asdict(summary))
        if summary.finished_before == summary.rows:
            print(f"{out} is complete, nothing was left to encode", file=sys.stderr)
        if summary.rejected:
            print(f"rejected rows: {summary.rejected}, see {out}.rejects.jsonl for the errors", file=sys.stderr)
    if summary.rejected:
        raise typer.Exit(SOME_REJECTED)


@contextmanager
def _row_progress(shown: bool) -> Iterator[Callable[[int, int, int], None]]:
    """A progress bar; yields the function to call with (done, total, rejected)."""
    with progress_bar("row", shown=shown) as bar:
        yield lambda done, total, rejected: bar.update(done, total, f"{rejected} rejected" if rejected else "")


def _parse_override(text: str) -> tuple[str, Any]:
    """Parse FIELD=VALUE; the value is JSON (8, true, [1, 2]) or else a string."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--set {text}: expected FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
