"""`himtok prepare NAME|mix|check`: datasets to rows, rows mixed, rows checked.

One command per dataset, made from the catalog; so annotations are evaluated here and now, unlike in other modules.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from himtok_plugin.data.catalog import FORMATS, Format

from .common import (
    SOME_REJECTED,
    JsonOption,
    app,
    check_seed,
    print_table,
    progress,
    within,
    write_json_output,
)

prepare_app = typer.Typer(
    help="Public datasets and your own to rows for training: `himtok prepare refcoco --root DIR OUT.jsonl`; rows to "
    "one mixture; rows checked.",
    rich_markup_mode=None,
)
app.add_typer(prepare_app, name="prepare")


@prepare_app.callback()
def prepare() -> None:
    """Public datasets and your own to rows for training."""


def _dataset_command(format: Format):
    def command(
        out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Rows to write.")],
        root: Annotated[Path, typer.Option("--root", metavar="DIR", help="The dataset's folder.")],
        split: Annotated[str, typer.Option("--split", help=", ".join(format.splits) + ".")] = format.splits[0],
        annotations: Annotated[
            Path | None, typer.Option("--annotations", metavar="PATH", help="Where they lie, if not where expected.")
        ] = None,
        images: Annotated[
            Path | None, typer.Option("--images", metavar="DIR", help="Where images lie, if not where expected.")
        ] = None,
        task: Annotated[
            list[str] | None,
            typer.Option(
                "--task",
                metavar="NAME[=SHARE]",
                help=f"What is asked; may be repeated; SHARE of its rows, default 1. Default: "
                f"{', '.join(format.tasks)}. See `himtok prepare tasks`.",
            ),
        ] = None,
        sentences: Annotated[
            str | None,
            typer.Option(
                "--sentences",
                help="Row for each expression of a referent, for one drawn, for the first, or all joined as the "
                "paper's code does. Default: each; first for ReasonSeg's val and test.",
            ),
        ] = None,
        merge_targets: Annotated[
            bool, typer.Option("--merge_targets", help="Several targets of an expression as one mask.")
        ] = False,
        max_masks: Annotated[int, typer.Option("--max_masks", help="Rows with more masks are not made.")] = 16,
        category: Annotated[
            str | None, typer.Option("--category", help="Class of everything, where a format knows none.")
        ] = None,
        prompts: Annotated[
            Path | None, typer.Option("--prompts", metavar="FILE.yaml", help="Phrasings in place of the shipped ones.")
        ] = None,
        limit: Annotated[int | None, typer.Option("--limit", help="Rows at most, of images drawn by the seed.")] = None,
        seed: Annotated[int, typer.Option("--seed", help="Of all that is drawn.", callback=check_seed)] = 0,
        num_workers: Annotated[
            int | None, typer.Option("--num_workers", help="Processes that read; by default one per core.")
        ] = None,
        check_images: Annotated[
            bool,
            typer.Option("--check_images/--no_check_images", help="Whether images have to be there, as annotated."),
        ] = True,
        relative_paths: Annotated[
            bool, typer.Option("--relative_paths", help="Images relative to --root, for use with ROOT_IMAGE_DIR.")
        ] = False,
        strict: Annotated[bool, typer.Option("--strict", help="Stop at the first thing to skip.")] = False,
        json_file: JsonOption = None,
    ) -> None:
        from himtok_plugin.data.formats.reader import Source
        from himtok_plugin.data.prepare import PrepareJob, prepare_samples
        from himtok_plugin.data.tasks import TaskOptions, parse_task_share
        from himtok_plugin.jobs.worker_pool import default_workers

        source = Source(format.name, root, split, annotations, images, check_images, relative_paths, category)
        job = PrepareJob(
            source,
            dict(parse_task_share(text, "--task") for text in task or []),
            TaskOptions(sentences, merge_targets, max_masks),
            prompts,
            limit,
            seed,
            default_workers() if num_workers is None else num_workers,
            strict,
        )
        with progress("image") as report:
            summary = prepare_samples(job, out, report)
        _print_summary(asdict(summary), out, json_file)

    first = format.about.split()[0]
    # A name that begins small, as gRefCOCO, stays as it is.
    command.__doc__ = (format.about[0].upper() + format.about[1:] if first.islower() else format.about) + "."
    return command


for _format in FORMATS.values():
    prepare_app.command(_format.name)(_dataset_command(_format))


@prepare_app.command("tasks")
def list_tasks() -> None:
    """The tasks that rows can be made for."""
    from himtok_plugin.data.tasks import TASKS

    for name, task in TASKS.items():
        print(f"{name:20}{task.about}")


def _print_summary(summary: dict, out: Path, json_file: str | None) -> None:
    skipped = summary["skipped"]
    if not write_json_output(summary, json_file):
        print_table({k: v for k, v in summary.items() if k != "skipped"} | {"skipped": sum(skipped.values())})
        for reason, count in sorted(skipped.items(), key=lambda entry: -entry[1]):
            print(f"skipped {count}: {reason}", file=sys.stderr)
    if skipped:
        print(f"what was skipped: {out}.skipped.jsonl", file=sys.stderr)


@prepare_app.command("mix")
def mix_rows(
    mixture: Annotated[Path, typer.Argument(metavar="MIXTURE.yaml", help="Parts and their ratios.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Rows to write.")],
    seed: Annotated[int | None, typer.Option("--seed", help="In place of the YAML's.", callback=check_seed)] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", help="Processes that read; by default one per core.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first thing to skip.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Rows of several datasets in one file, in the proportions that a YAML says."""
    from himtok_plugin.data.mixture import Mixture, mix
    from himtok_plugin.jobs.worker_pool import default_workers

    workers = default_workers() if num_workers is None else num_workers
    loaded = Mixture.load(mixture, seed, workers, strict)
    with progress("row") as report:
        summary = asdict(mix(loaded, out, report))
    parts = summary.pop("parts")
    if write_json_output({**summary, "parts": parts}, json_file):
        return
    skipped = summary.pop("skipped")
    print_table({**summary, **{part["part"]: part["rows"] for part in parts}, "skipped": sum(skipped.values())})
    if skipped:
        print(f"what was skipped: {out}.skipped.jsonl", file=sys.stderr)


@prepare_app.command("check")
def check_rows(
    rows: Annotated[Path, typer.Argument(metavar="ROWS.jsonl", help="Rows to check.")],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="EVAL.jsonl", help="Rows whose images are not to be in it; may be repeated."),
    ] = None,
    without_leaks: Annotated[
        Path | None,
        typer.Option("--without_leaks", metavar="FILE", help="Gets the rows that share no image with them."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="PAGE.html", help="Sample rows to look at.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Rows on the page.", callback=within(1))] = 24,
    seed: Annotated[int, typer.Option("--seed", help="Of which rows are on the page.", callback=check_seed)] = 0,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where relative images and masks start from.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", help="Processes that check; by default one per core.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Check rows: masks, placeholders, images, boxes, images shared with evaluation. Exit status 1 for findings."""
    from himtok_plugin.data.check.checker import check
    from himtok_plugin.jobs.worker_pool import default_workers

    with progress("B") as on_progress:
        report = check(
            rows,
            against or (),
            root=root,
            num_workers=default_workers() if num_workers is None else num_workers,
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
        if html is not None:
            print(html)
    if not report.clean:
        raise typer.Exit(SOME_REJECTED)
