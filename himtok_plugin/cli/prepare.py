"""`himtok prepare NAME|tasks|mix|check`: convert datasets to samples, mix samples, check them.

There is one command per dataset of the catalog. Its options depend on the dataset, so this module has no `from
__future__ import annotations`: typer needs the evaluated annotations.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from himtok_plugin.data.catalog import FORMATS, Format

from .common import (
    SOME_REJECTED,
    JsonOption,
    QuietOption,
    app,
    check_range,
    check_seed,
    print_table,
    write_json_output,
)
from .progress_bars import BYTES, progress

TURNED_NOTE = (
    "turned upright by the EXIF orientation: {}; masks and boxes must belong to the upright image, which their sizes "
    "do not show if the image is square, mirrored or turned by 180 degrees"
)
CHOSEN_TASKS = "what the annotations can serve"  # for formats without default tasks

prepare_app = typer.Typer(rich_markup_mode=None)
app.add_typer(prepare_app, name="prepare")


@prepare_app.callback()
def prepare() -> None:
    """Convert, mix and check training data.

    `himtok prepare NAME --root DIR OUT.jsonl` converts a public dataset, or one of your own, to a JSONL file of
    samples. `mix` combines several such files, `check` reports faults.
    """


def _make_dataset_command(format: Format) -> tuple[Callable[..., None], str]:
    """The command of a dataset, and its line in the list of commands."""

    def command(
        out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="File of samples to write.")],
        root: Annotated[Path, typer.Option("--root", metavar="DIR", help="The dataset's folder.")],
        split: Annotated[str, typer.Option("--split", help=", ".join(format.splits) + ".")] = format.splits[0],
        annotations: Annotated[
            Path | None,
            typer.Option("--annotations", metavar="PATH", help="Annotations, if not at their usual place."),
        ] = None,
        images: Annotated[
            Path | None,
            typer.Option("--images", metavar="DIR", help="Images, if not at their usual place."),
        ] = None,
        task: Annotated[
            list[str] | None,
            typer.Option(
                "--task",
                metavar="NAME[=SHARE]",
                help="Task of the samples, see `himtok prepare tasks`; may be repeated. Only this SHARE of its samples "
                f"is written, by default all. Default: {', '.join(format.tasks) or CHOSEN_TASKS}.",
            ),
        ] = None,
        sentences: Annotated[
            str | None,
            typer.Option(
                "--sentences",
                help="Expressions of a referent to ask about: each, one (at random), first, or joined (all in one "
                "question, as in the paper's code). Default: each; first for ReasonSeg's val and test.",
            ),
        ] = None,
        merge_targets: Annotated[
            bool, typer.Option("--merge_targets", help="Merge several targets of an expression into one mask.")
        ] = False,
        max_masks: Annotated[int, typer.Option("--max_masks", help="Skip samples with more masks.")] = 16,
        category: Annotated[
            str | None, typer.Option("--category", help="Class name of all masks, for formats without class names.")
        ] = None,
        classes: Annotated[
            str | None,
            typer.Option(
                "--classes",
                metavar="MAP",
                help="Class names of label maps and of class numbers: road=1,car=2, or a JSON, YAML or text file.",
            ),
        ] = None,
        crowds: Annotated[
            str,
            typer.Option(
                "--crowds",
                help="What iscrowd marks: groups (of objects, as in COCO), objects (as CVAT and datumaro write masks), "
                "or auto: what the file shows.",
            ),
        ] = "auto",
        prompts: Annotated[
            Path | None,
            typer.Option("--prompts", metavar="FILE.yaml", help="Question templates instead of the shipped ones."),
        ] = None,
        limit: Annotated[
            int | None, typer.Option("--limit", help="Write at most this many samples, drawn by --seed.")
        ] = None,
        seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.", callback=check_seed)] = 0,
        num_workers: Annotated[
            int | None, typer.Option("--num_workers", help="Processes that read. Default: one per core.")
        ] = None,
        check_images: Annotated[
            bool,
            typer.Option("--check_images/--no_check_images", help="Require images to exist in their annotated size."),
        ] = True,
        relative_paths: Annotated[
            bool, typer.Option("--relative_paths", help="Write image paths relative to --root, for ROOT_IMAGE_DIR.")
        ] = False,
        strict: Annotated[bool, typer.Option("--strict", help="Stop at the first annotation to skip.")] = False,
        json_file: JsonOption = None,
        quiet: QuietOption = False,
    ) -> None:
        from himtok_plugin.data.class_maps import read_class_map
        from himtok_plugin.data.formats.reader import Source
        from himtok_plugin.data.prepare import PrepareJob, prepare_samples
        from himtok_plugin.data.tasks import TaskOptions, parse_task_share
        from himtok_plugin.jobs.worker_pool import default_num_workers

        names = None if classes is None else read_class_map(classes)
        source = Source(
            format.name, root, split, annotations, images, check_images, relative_paths, category, names, crowds
        )
        job = PrepareJob(
            source,
            dict(parse_task_share(text, "--task") for text in task or []),
            TaskOptions(sentences, merge_targets, max_masks),
            prompts,
            limit,
            seed,
            default_num_workers() if num_workers is None else num_workers,
            strict,
        )
        with progress("image", not quiet) as report:
            summary = prepare_samples(job, out, report)
        _print_summary(asdict(summary), out, json_file)

    first = format.about.split()[0]
    # A name such as gRefCOCO keeps its first letter.
    about = (format.about[0].upper() + format.about[1:] if first.islower() else format.about) + "."
    command.__doc__ = f"{about}\n\nConverts the dataset to a JSONL file of samples."
    return command, about


for _format in FORMATS.values():
    _command, _about = _make_dataset_command(_format)
    prepare_app.command(_format.name, short_help=_about)(_command)


@prepare_app.command("tasks")
def list_tasks() -> None:
    """List the tasks of samples."""
    from himtok_plugin.data.tasks import TASKS

    for name, task in TASKS.items():
        print(f"{name:20}{task.about}")


def _print_summary(summary: dict, out: Path, json_file: str | None) -> None:
    """Print the figures of a run to stdout; notes, and what is in no row with its reason, to stderr."""
    if not write_json_output(summary, json_file):
        figures = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        figures |= {f"rows of {task}": rows for task, rows in summary["tasks"].items() if len(summary["tasks"]) > 1}
        print_table(figures | {kind: sum(summary[kind].values()) for kind in ("skipped", "unused")})
    print_losses(summary, out)


def print_losses(summary: dict, out: Path) -> None:
    """Print the notes of a run, what was skipped, and what is valid and in no row, with counts and reasons."""
    for note in summary["notes"]:
        print(note, file=sys.stderr)
    for kind in ("skipped", "unused"):
        for reason, count in sorted(summary[kind].items(), key=lambda entry: -entry[1]):
            print(f"{kind} {count}: {reason}; for example {summary['examples'][reason]:.200}", file=sys.stderr)
    if summary["skipped"] or summary["unused"]:
        print(f"see {out}.skipped.jsonl for each of them", file=sys.stderr)


@prepare_app.command("mix")
def mix_rows(
    mixture: Annotated[Path, typer.Argument(metavar="MIXTURE.yaml", help="Datasets and their ratios.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="File of samples to write.")],
    seed: Annotated[int | None, typer.Option("--seed", help="Seed instead of the YAML's.", callback=check_seed)] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", help="Processes that read. Default: one per core.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first sample to skip.")] = False,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Mix several datasets in one file.

    A YAML file lists the datasets and their ratios.
    """
    from himtok_plugin.data.mixture import Mixture, mix
    from himtok_plugin.jobs.worker_pool import default_num_workers

    workers = default_num_workers() if num_workers is None else num_workers
    loaded = Mixture.load(mixture, seed, workers, strict)
    with progress("row", not quiet) as report:
        summary = asdict(mix(loaded, out, report))
    parts = summary.pop("parts")
    if write_json_output({**summary, "parts": parts}, json_file):
        return
    figures = {"rows": summary["rows"]} | {part["part"]: part["rows"] for part in parts}
    print_table(figures | {kind: sum(summary[kind].values()) for kind in ("skipped", "unused")})
    print_losses(summary, out)


@prepare_app.command("check")
def check_rows(
    rows: Annotated[Path, typer.Argument(metavar="ROWS.jsonl", help="Samples to check.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against", metavar="EVAL.jsonl", help="Evaluation samples; report shared images. May be repeated."
        ),
    ] = None,
    without_leaks: Annotated[
        Path | None,
        typer.Option("--without_leaks", metavar="FILE", help="Write the samples that share no image with EVAL.jsonl."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="PAGE.html", help="Write a page with random samples.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Samples on the page.", callback=check_range(1))] = 24,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples on the page.", callback=check_seed)] = 0,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Folder of relative image and mask paths.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", help="Processes that check. Default: one per core.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first sample with a fault.")] = False,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Check samples before training.

    Checks masks, boxes, placeholders and images, repeated samples, and images shared with evaluation data. Exit status
    1 if there is a fault.
    """
    from himtok_plugin.data.check.checker import check_file
    from himtok_plugin.jobs.worker_pool import default_num_workers
    from himtok_plugin.validation import counted

    with progress(BYTES, not quiet) as on_progress:
        report = check_file(
            rows,
            against or (),
            root=root,
            num_workers=default_num_workers() if num_workers is None else num_workers,
            strict=strict,
            html=html,
            samples=samples,
            seed=seed,
            without_leaks=without_leaks,
            on_progress=on_progress,
        )
    found = asdict(report)
    if not write_json_output(found, json_file):
        plain = {key: value for key, value in found.items() if isinstance(value, int)}
        leaks = {f"{what} shared with {name}": n for name, leak in report.leaks.items() for what, n in leak.items()}
        print_table(plain | {f"bad {kind}": count for kind, count in report.faults.items()} | leaks)
        for number, kind, what in report.examples:
            print(f"row {number}: {kind}: {what}", file=sys.stderr)
        if report.turned:
            print(TURNED_NOTE.format(counted(report.turned, "image")), file=sys.stderr)
        if html is not None:
            print(html)
    if not report.is_clean:
        raise typer.Exit(SOME_REJECTED)
