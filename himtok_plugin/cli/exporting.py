"""`himtok export`: predictions as annotations for other tools."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .common import SOME_REJECTED, JsonOption, QuietOption, app, check_range, print_table, write_json_output
from .prepare import print_losses
from .progress_bars import progress

FORMATS = "coco, labelme, yolo, cvat, png or label-studio"


@app.command("export")
def export(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS.jsonl", help="Result file of `swift infer --plugin himtok`.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"Format: {FORMATS}.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write.")],
    images: Annotated[
        str,
        typer.Option("--images", help="Image files in the folder: copy, link (symbolic), or none."),
    ] = "copy",
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Folder of the images, also of those whose paths are of another machine. Default: relative paths are "
            "relative to the folder of RESULTS.jsonl, or to the working directory.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="NAME",
            help="Class of all objects. Default: the label in the answer, the class of the row, or the expression of "
            "the question.",
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            "--shapes", help="masks or polygons, where the format has both. Default: masks; labelme: polygons."
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="PIXELS",
            callback=check_range(0),
            help="How far a polygon may be from the outline of its mask; 0: exact outlines, with many points.",
        ),
    ] = 1.0,
    min_score: Annotated[
        float,
        typer.Option("--min_score", callback=check_range(0, 1), help="Leave out masks with a lower score."),
    ] = 0.0,
    duplicates: Annotated[
        str,
        typer.Option("--duplicates", help="Of several results of a row: refuse, first or last."),
    ] = "refuse",
    force: Annotated[
        bool, typer.Option("--force", help="Replace what an earlier run of this command has written to the folder.")
    ] = False,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Export predictions to other annotation tools.

    Writes a folder with annotations and images, which the tool opens and `himtok prepare` reads back. Exit status 1 if
    a result or a mask could not be exported.
    """
    from himtok_plugin.export.run import ExportOptions, export_results

    options = ExportOptions(to, shapes, tolerance, images, root, label, min_score, duplicates, force)
    with progress("image", not quiet) as report:
        summary = asdict(export_results(results, output, options, report))
    if not write_json_output(summary, json_file):
        print_table({name.replace("_", " "): value for name, value in summary.items() if isinstance(value, int)})
    print_losses(summary, output)
    if summary["skipped"]:
        raise typer.Exit(SOME_REJECTED)
