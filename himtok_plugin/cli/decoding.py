"""`himtok decode`: mask text, wherever it was copied from, to PNG files and overlays."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from .common import (
    NOTHING_TO_DO,
    MaskTokenizerOption,
    QuietOption,
    app,
    mask_tokenizer_from_option,
    warn_if_untrained,
)
from .progress_bars import ProgressBar, progress_bar

if TYPE_CHECKING:
    from himtok_plugin.prediction.copied_text import CopiedAnswer
    from himtok_plugin.prediction.mask_files import DecodedSpan

SIZE_OPTION = "--size"
# An argument without mask tokens that is a file's name rather than a sentence: one word, or with a suffix.
_FILE_NAME = re.compile(r"\S+|[^\n]*\.[A-Za-z]\w{0,7}")
LONGEST_PATH = 4096  # characters


class DecodeCommand(TyperCommand):
    """A command whose `--size H W` can be repeated, which typer supports for options of one value only."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Join the two values of each `--size`."""
        joined: list[str] = []
        rest = list(args)
        while rest:
            joined.append(rest.pop(0))
            if joined[-1] == "--":
                joined += rest
                break
            if joined[-1] == SIZE_OPTION and len(rest) >= 2:
                joined.append(f"{rest.pop(0)} {rest.pop(0)}")
        return super().parse_args(ctx, joined)


@app.command(cls=DecodeCommand)
def decode(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE|-",
            help="Text with masks, a file of text or results, or - for stdin. An argument without mask tokens that is "
            "one word, or ends with a suffix such as .txt, is a file's name.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of mask_0.png, mask_1.png, ...")],
    size: Annotated[
        list[str] | None,
        typer.Option(SIZE_OPTION, metavar="H W", help="Height and width of the PNG files; repeat it for each mask."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Image whose size the masks get; repeat it for each mask."),
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write overlay_0.png, ...: each image with its masks, in colours.")
    ] = False,
    mask_tokenizer: MaskTokenizerOption = "default",
    quiet: QuietOption = False,
) -> None:
    """Decode mask text to PNG files.

    Writes a file per mask in the text and prints its path. Rows of results are read as well, and without --size or
    --image, masks get the sizes that their rows have. Exit status 1 if no mask has a usable code.
    """
    from himtok_plugin.mask_text import text_to_codes
    from himtok_plugin.prediction.copied_text import describe_near_miss, read_answers

    if size and image:
        raise ValueError("size: got --size and --image, expected one of them")
    sizes = [_parse_size(value) for value in size or []]
    source = _read_source(text)
    answers = read_answers(source)
    for name in sorted({answer.escaping for answer in answers if answer.escaping}):
        print(f"the text is escaped as in {name}, its mask tokens are read without the escapes", file=sys.stderr)
    counts = [len(text_to_codes(answer.text)) for answer in answers]
    if not any(counts):
        near = describe_near_miss("\n".join(answer.text for answer in answers) or source)
        print("no mask in the text" + (f": {near}" if near else ""), file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)
    plan = _plan_masks(answers, counts, sizes, image or [], None if text == "-" else Path(text), overlay)
    model = mask_tokenizer_from_option(mask_tokenizer, quiet=quiet)
    warn_if_untrained(model)
    from himtok_plugin.prediction.mask_files import decode_to_files, write_overlay

    first = overlays = written = 0
    with progress_bar("mask", sum(counts), not quiet) as bar:
        for answer, (mask_sizes, images) in zip(answers, plan, strict=True):
            decoded = decode_to_files(answer.text, mask_sizes, model, output, first=first)
            written += _print_decoded(decoded, first, bar)
            first += len(decoded)
            for path in dict.fromkeys(images if overlay else []):
                masks = [mask.mask for mask, own in zip(decoded, images, strict=True) if own == path]
                found = [mask for mask in masks if mask is not None]
                if found:
                    bar.print(str(write_overlay(path, found, output / f"overlay_{overlays}.png")))
                    overlays += 1
            bar.update(first)
    if not written:
        print("no mask in the text", file=sys.stderr)
        raise typer.Exit(NOTHING_TO_DO)


def _print_decoded(decoded: Sequence[DecodedSpan], first: int, bar: ProgressBar) -> int:
    """Print the paths of decoded masks, and what is wrong with incomplete ones; return the number of paths."""
    for i, mask in enumerate(decoded, first):
        if not mask.span.complete:
            found = f"decoded from {len(mask.span.codes)} codes" if mask.path else "no usable code, no PNG written"
            print(f"mask {i} (characters {mask.span.start} to {mask.span.end}) is incomplete: {found}", file=sys.stderr)
        if mask.path:
            bar.print(str(mask.path))
    return sum(mask.path is not None for mask in decoded)


def _plan_masks(
    answers: Sequence[CopiedAnswer],
    counts: Sequence[int],
    sizes: list[tuple[int, int]],
    images: list[Path],
    file: Path | None,
    overlay: bool,
) -> list[tuple[list[tuple[int, int]], list[Path]]]:
    """Find the size and the image of each mask, answer by answer.

    Args:
        counts: number of masks in each answer.
        sizes, images: of the options.
        file: the file of the answers; images of its rows may be relative to its folder.
        overlay: whether images are needed.
    Raises:
        ValueError: there is no size, or no image; or their number is not that of the masks.
    """
    from himtok_plugin.files.images import open_header

    total = sum(counts)
    given = [*sizes, *images]
    if given and len(given) not in (1, total):
        option = SIZE_OPTION if sizes else "--image"
        raise ValueError(f"{option}: got {len(given)}, expected one, or one for each of the {total} masks")
    plan, first = [], 0
    for answer, count in zip(answers, counts, strict=True):
        own = images[:1] * count if len(images) == 1 else images[first : first + count]
        if not own and (overlay or not (sizes or _get_row_sizes(answer, count))):
            found = _find_row_image(answer, file)
            own = [] if found is None else [found] * count
        if overlay and count and not own:
            raise ValueError("overlay: got no image, expected --image FILE, or rows of results with images")
        if sizes:
            mask_sizes = sizes * count if len(sizes) == 1 else sizes[first : first + count]
        elif own:
            mask_sizes = [open_header(path).size for path in own]
        else:
            mask_sizes = _get_row_sizes(answer, count)
        if count and not mask_sizes:
            raise ValueError(
                f"size: got no size of {'the masks' if total > 1 else 'the mask'}, expected --size H W or --image FILE"
            )
        plan.append((mask_sizes, own))
        first += count
    return plan


def _get_row_sizes(answer: CopiedAnswer, count: int) -> list[tuple[int, int]]:
    """The sizes of an answer's masks in its row: one each, or the same for all if the row leaves some masks out."""
    if len(answer.sizes) == count:
        return answer.sizes
    return answer.sizes[:1] * count if len(set(answer.sizes)) == 1 else []


def _find_row_image(answer: CopiedAnswer, file: Path | None) -> Path | None:
    """The first image of a row, relative to this folder or to the folder of the row's file; None without one."""
    if not answer.images:
        return None
    places = [Path(answer.images[0]), *([] if file is None else [file.parent / answer.images[0]])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"images: got {answer.images[0]!r}, which is not there, expected --image FILE or --size H W")
    return found


def _parse_size(value: str) -> tuple[int, int]:
    sides = value.split()
    if len(sides) != 2 or not all(side.isascii() and side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"size: got {value!r}, expected two positive integers (h, w)")
    return int(sides[0]), int(sides[1])


def _read_source(source: str) -> str:
    """The text of the argument: of stdin, of a file, or the argument itself.

    Raises:
        ValueError: the argument is the name of a file that does not exist, or a file is not text.
    """
    from himtok_plugin.files.text import decode_text, read_text
    from himtok_plugin.mask_text import MASK_TOKEN_PREFIX
    from himtok_plugin.prediction.copied_text import describe_near_miss, unescape_mask_tokens

    if source == "-":
        stream = getattr(sys.stdin, "buffer", None)
        return sys.stdin.read() if stream is None else decode_text(stream.read(), "stdin")
    if os.path.isfile(source):  # unlike Path.is_file, accepts a text that is too long for a file name
        return read_text(Path(source))
    if os.path.isdir(source):
        raise ValueError(f"{source}: got a folder, expected a file, or text with masks")
    plain = unescape_mask_tokens(source)[0]
    is_text = MASK_TOKEN_PREFIX in plain or (describe_near_miss(plain) is not None and "|" in plain)
    if not is_text and len(source) <= LONGEST_PATH and _FILE_NAME.fullmatch(source):
        raise ValueError(f"{source}: no such file, and no text with a mask, expected one of both")
    return source
