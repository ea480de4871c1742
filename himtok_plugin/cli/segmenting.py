"""`himtok segment`: image files and what to segment in them, from the shell."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import NOTHING_TO_DO, SOME_REJECTED, QuietOption, app, hide_loading_bars, stdout_to_stderr
from .progress_bars import ProgressBar, progress_bar

if TYPE_CHECKING:
    from himtok_plugin.prediction.segmentation_result import SegmentationResult
    from himtok_plugin.segmenting.answerers import Answer, Answerer, FileQuestion
    from himtok_plugin.segmenting.result_files import FreeNames

STDIN = "-"
LOG_LEVEL = "LOG_LEVEL"  # of ms-swift


@app.command()
def segment(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPRESSION|-",
            help="What to segment, such as 'the dog on the left', or a question that ends like a sentence. - reads "
            "several from stdin, one a line.",
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", help="Folder or hub id of a checkpoint; `default` ships with the package.")
    ] = "default",
    adapters: Annotated[
        list[str] | None, typer.Option("--adapters", metavar="DIR", help="Adapter; repeat it for several.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda:0. Default: the GPU if there is one.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base_url", metavar="URL", help="Ask a server of `swift deploy --plugin himtok` instead."),
    ] = None,
    api_key: Annotated[str | None, typer.Option("--api_key", metavar="KEY", help="Key of the server.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE|DIR",
            help="Picture with the masks drawn on the image; for several images or expressions, a folder. Default: "
            "IMAGE_segmented.png in this folder, unless --masks or --json is given.",
        ),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", metavar="DIR", help="Folder for a PNG per mask, 255 where the object is.")
    ] = None,
    json_lines: Annotated[
        bool,
        typer.Option("--json", help="Print results to stdout as `swift infer` writes them, for `himtok export`."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the picture of --output.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Segment images: draw what an expression names.

    Writes a picture per image and expression, and prints the answer. The model is loaded once. Exit status 1 if an
    image could not be answered, or if no answer has a mask.
    """
    from himtok_plugin.segmenting.answerers import FileQuestion, check_expression
    from himtok_plugin.segmenting.image_files import find_images, is_image_name
    from himtok_plugin.validation import counted

    if expression != STDIN and is_image_name(Path(expression)) and Path(expression).is_file():
        raise ValueError(f"expression: got the image {expression!r}, expected what to segment as the last argument")
    expressions = _read_expressions() if expression == STDIN else [expression]
    for each in expressions:
        check_expression(each)
    if base_url is not None and (model != "default" or adapters or device):
        raise ValueError(
            "base_url: got it beside --model, --adapters or --device, expected either: a server has its own"
        )
    found = find_images(images)
    if found.others:
        shown = ", ".join(path.name for path in found.others[:3]) + (", ..." if len(found.others) > 3 else "")
        print(f"left out: {counted(len(found.others), 'file')} without an image's suffix ({shown})", file=sys.stderr)
    if found.earlier:
        print(f"left out: {counted(len(found.earlier), 'picture')} that an earlier run has written", file=sys.stderr)
    for folder in found.unreadable:
        print(f"left out: the folder {str(folder)!r}, which cannot be read", file=sys.stderr)
    questions = [FileQuestion(image, each) for image in found.images for each in expressions]
    files = _Files(questions, output, masks, json_lines, force)
    answerer = _load_answerer(model, adapters, device, base_url, api_key, quiet)
    failed = drawn = 0
    with progress_bar("image" if len(expressions) == 1 else "question", len(questions), not quiet) as bar:
        for done, (question, answer) in enumerate(_answer_all(answerer, questions), 1):
            files.report(question, answer, bar)
            failed += isinstance(answer, str)
            drawn += not isinstance(answer, str) and len(answer) > 0
            bar.update(done)
    if failed:
        print(f"{failed} of {len(questions)} questions could not be answered", file=sys.stderr)
        raise typer.Exit(SOME_REJECTED)
    if not drawn:
        raise typer.Exit(NOTHING_TO_DO)


class _Files:
    """Writes and prints the answers of a run.

    Args:
        questions: all of them.
        output, masks, json_lines, force: the options.
    Raises:
        ValueError: `output` cannot be what was asked for.
    """

    def __init__(
        self,
        questions: list[FileQuestion],
        output: Path | None,
        masks: Path | None,
        json_lines: bool,
        force: bool = False,
    ):
        from himtok_plugin.segmenting.image_files import is_image_name, is_other_file_name
        from himtok_plugin.segmenting.result_files import FreeNames

        images = list(dict.fromkeys(question.image for question in questions))
        self.names: FreeNames = FreeNames(images)
        self.masks, self.json_lines = masks, json_lines
        self.file: Path | None = None
        self.folder: Path | None = None if masks or json_lines else Path()
        if output is not None:
            if len(questions) == 1 and is_image_name(output) and not output.is_dir():
                self.file, self.folder = output, None
            else:
                self.folder = output
        if self.file is not None and self.file.resolve() in {image.resolve() for image in images}:
            raise ValueError(f"output: got {str(output)!r}, which is the image itself, expected another file")
        if self.file is not None and self.file.exists() and not force:
            raise ValueError(f"output: got {str(output)!r}, which is there already, expected a new file, or --force")
        if self.file is None and output is not None and is_other_file_name(output) and not output.is_dir():
            raise ValueError(f"output: got {str(output)!r}, expected a picture such as {output.stem}.png, or a folder")
        for option, folder in (("output", self.folder), ("masks", masks)):
            if folder is not None and folder.exists() and not folder.is_dir():
                raise ValueError(f"{option}: got the file {str(folder)!r}, expected a folder")
        if self.folder is not None and len(questions) > 1 and is_image_name(self.folder) and not self.folder.is_dir():
            raise ValueError(f"output: got the file {str(output)!r} for {len(questions)} pictures, expected a folder")

    def report(self, question: FileQuestion, answer: Answer, bar: ProgressBar) -> None:
        """Write and print what an answer has."""
        from himtok_plugin.segmenting.result_files import make_row

        if self.json_lines:
            bar.print(json.dumps(make_row(question, answer)))
        if isinstance(answer, str):
            print(_make_printable(f"error: {question.image}: {answer}"), file=sys.stderr)
            return
        lines = _describe(question, answer)
        for path in self._write(question, answer):
            lines.append(f"  {path}")
        for line in map(_make_printable, lines):
            if self.json_lines:
                print(line, file=sys.stderr)
            else:
                bar.print(line)

    def _write(self, question: FileQuestion, answer: SegmentationResult) -> Iterator[Path]:
        """Write the files of an answer; one without masks has none, since a picture would look like a result."""
        from himtok_plugin.segmenting.image_files import OVERLAY_ENDING
        from himtok_plugin.segmenting.result_files import draw_result, list_labels, write_masks, write_picture

        if not len(answer):
            return
        stem = question.image.stem
        if self.file is not None or self.folder is not None:
            path = self.file or self.names.choose(self.folder or Path(), stem, OVERLAY_ENDING)
            yield write_picture(draw_result(answer, list_labels(answer, question.expression)), path)
        if self.masks is not None:
            yield from write_masks(answer, self.masks, stem, self.names)


def _make_printable(line: str) -> str:
    """Escape what stdout cannot show, such as names of files that are no text."""
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _describe(question: FileQuestion, answer: SegmentationResult) -> list[str]:
    """The answer in words, with a number and a score for each mask."""
    from himtok_plugin.mask_text import text_to_codes
    from himtok_plugin.segmenting.result_files import describe_score
    from himtok_plugin.validation import counted
    from himtok_plugin.words.known_words import describe_unknown_words

    text, end = "", 0
    spans = text_to_codes(answer.text)
    numbers = iter(range(len(answer)))
    for span in spans:
        text += answer.text[end : span.start]
        i = next(numbers, None) if span.codes else None
        text += "[no mask]" if i is None else f"[{' '.join(filter(None, ('mask', describe_score(answer.scores[i]))))}]"
        end = span.end
    lines = [f"{question.image}: {question.expression}", f"  {' '.join((text + answer.text[end:]).split())}"]
    if not len(answer):
        lines.append("  no mask: the answer has none")
    if not all(answer.complete):
        lines.append(f"  {counted(sum(not each for each in answer.complete), 'incomplete mask')}: the text was cut")
    empty = sum(not mask.any() for mask in answer.masks)
    if empty:
        lines.append(f"  {counted(empty, 'mask')} without foreground")
    if answer.unknown_words:
        lines.append(f"  {describe_unknown_words(answer.unknown_words)}")
    return lines


def _answer_all(answerer: Answerer, questions: list[FileQuestion]) -> Iterator[tuple[FileQuestion, Answer]]:
    for first in range(0, len(questions), answerer.batch_size):
        batch = questions[first : first + answerer.batch_size]
        yield from zip(batch, answerer.answer(batch), strict=True)


def _load_answerer(
    model: str, adapters: list[str] | None, device: str | None, base_url: str | None, api_key: str | None, quiet: bool
) -> Answerer:
    from himtok_plugin.prediction.question_text import QUESTION
    from himtok_plugin.segmenting.answerers import LocalAnswerer, ServerAnswerer

    if base_url is not None:
        from himtok_plugin.client import MaskClient

        return ServerAnswerer(MaskClient(base_url, api_key), QUESTION)
    os.environ.setdefault(LOG_LEVEL, "WARNING")  # what ms-swift sets and loads is not what was asked for
    with stdout_to_stderr(), progress_bar("loading the model", shown=not quiet):
        from himtok_plugin import Segmenter

        hide_loading_bars(quiet)
        return LocalAnswerer(Segmenter.from_pretrained(model, adapters=adapters, device=device))


def _read_expressions() -> list[str]:
    """The lines of stdin that are not empty."""
    from himtok_plugin.files.text import decode_text

    stream = getattr(sys.stdin, "buffer", None)
    text = sys.stdin.read() if stream is None else decode_text(stream.read(), "stdin")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("expression: got nothing on stdin, expected what to segment, one a line")
    return lines
