"""`himtok export`: a result file becomes a folder that another annotation tool opens.

Contract: the folder is complete or as it was before (`files.output_folder`). Everything of the result file that is in
no annotation is in the summary, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from himtok_plugin.data.prepare import skipped_file
from himtok_plugin.data.prepare_summary import LossSummary
from himtok_plugin.data.skip_log import MISSING_IMAGE, AnnotationError, SkipLog
from himtok_plugin.evaluation.results import check_min_score
from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.files.output_folder import OutputFolder
from himtok_plugin.validation import counted

from .annotations import ExportImage
from .image_files import COPY, NONE, PLACEMENTS, ImageFile, ImageFiles, name_files, name_in_place
from .layouts import LAYOUTS, Layout, Plan
from .outlines import DEFAULT_TOLERANCE, check_tolerance
from .results import Collected, ResultImage, collect_images

COMMAND = "himtok export"
_FILE_SUFFIXES = (".json", ".jsonl", ".xml", ".yaml", ".yml", ".txt", ".zip", ".png", ".jpg")


@dataclass(frozen=True)
class ExportOptions:
    """How results are exported.

    Attributes:
        format: a key of `LAYOUTS`.
        shapes: `masks` or `polygons`; None: the format's default.
        tolerance: of polygons, in pixels; 0 for exact outlines.
        images: `copy`, `link` or `none`.
        root: folder of relative image paths; None: the result file's, or the working directory.
        label: the class of all objects; None: what the results call them.
        min_score: masks with a lower score are left out.
        duplicates: which result of a row counts, see `result_keys.DUPLICATES`.
        force: replace an earlier export in the folder.
    """

    format: str
    shapes: str | None = None
    tolerance: float = DEFAULT_TOLERANCE
    images: str = COPY
    root: Path | None = None
    label: str | None = None
    min_score: float = 0.0
    duplicates: str = "refuse"
    force: bool = False

    def check(self) -> Layout:
        """Return the layout of the format.

        Raises:
            ValueError: an option that is unknown or does not go with the format.
        """
        if self.format not in LAYOUTS:
            raise ValueError(f"--to: got {self.format!r}, expected one of {', '.join(LAYOUTS)}")
        layout = LAYOUTS[self.format]
        if self.shapes is not None and self.shapes not in layout.shapes:
            expected = " or ".join(layout.shapes)
            raise ValueError(f"--shapes: got {self.shapes!r}, expected {expected} for {self.format}")
        if self.images not in PLACEMENTS:
            raise ValueError(f"--images: got {self.images!r}, expected one of {', '.join(PLACEMENTS)}")
        if self.label is not None and not self.label.strip():
            raise ValueError(f"--label: got {self.label!r}, expected the name of a class")
        check_min_score(self.min_score)
        check_tolerance(self.tolerance)
        return layout


@dataclass
class ExportSummary(LossSummary):
    """The figures of an export; `unused` are masks and results that the options leave out.

    Attributes:
        images, objects, labels: what was written.
        results: lines of the file with an answer.
        without_masks: of these, answers without a mask; their images are written without objects.
        cut: objects whose mask text was cut or malformed.
    """

    images: int = 0
    objects: int = 0
    labels: int = 0
    results: int = 0
    without_masks: int = 0
    cut: int = 0


def export_results(
    results: Path,
    output: Path,
    options: ExportOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExportSummary:
    """Export a result file.

    Args:
        results: of `swift infer --plugin himtok`.
        output: the folder to write.
        options: see the class.
        on_progress: called with (images written, images in all).
    Raises:
        ValueError: bad options, a file that is no result file, nothing to export, or a folder with other files.
        OSError: files that cannot be read or written.
    """
    layout = options.check()
    if output.suffix.lower() in _FILE_SUFFIXES and not output.is_dir():
        raise ValueError(f"--output: got {str(output)!r}, expected the name of a folder, which has several files")
    folder = OutputFolder(output, COMMAND, layout.parts)
    folder.check(options.force)
    collected = collect_images(results, options.label, options.min_score, options.duplicates)
    found = _find_images(collected, ImageFiles(results, options.root), options)
    if not found:
        raise ValueError(f"{results}: has nothing to export: {_explain(collected.skipped)}")
    files = [file for _, file in found]
    top, names = name_in_place(files)
    if options.images != NONE or options.format == "png":  # mask images are found by names without folders
        names = name_files(files)
    objects = [each for image, _ in found for each in image.objects]
    labels = list(dict.fromkeys(each.label for each in objects))
    summary = ExportSummary(
        images=len(files),
        objects=len(objects),
        labels=len(labels),
        results=collected.results,
        without_masks=collected.without_masks,
        cut=collected.cut,
        notes=_list_notes(collected, files, layout, options, top),
    )
    with folder.fill() as new:
        images_from = str(top) if options.images == NONE else layout.images_folder
        images = _decode(found, names, new / layout.images_folder, options.images, on_progress)
        stems = [str(Path(name).with_suffix("")) for name in names]
        shapes = options.shapes or layout.shapes[0]
        layout.write(Plan(images, stems, labels, shapes, options.tolerance, images_from, summary.notes), new)
    with atomic_write(skipped_file(output), empty=False) as file:
        summary.count(collected.skipped.entries, collected.skipped.unused, file)
    return summary


def _find_images(
    collected: Collected, finder: ImageFiles, options: ExportOptions
) -> list[tuple[ResultImage, ImageFile]]:
    """The images with their files; results that name one file differently are joined. Others are logged as skipped."""
    joined: dict[Path, tuple[ResultImage, ImageFile]] = {}
    for image in collected.images.values():
        try:
            file = finder.find(image.path, image.size)
        except AnnotationError as error:
            if error.reason != MISSING_IMAGE or options.images != NONE or image.size is None:
                for _ in range(max(len(image.objects), 1)):
                    collected.skipped.add(error.reason, f"line {image.line}: {error.detail}")
                continue
            file = ImageFile(Path(image.path).absolute(), image.size)
        known = joined.setdefault(file.path, (image, file))[0]
        if known is not image:
            known.objects += image.objects
    return list(joined.values())


def _decode(
    found: list[tuple[ResultImage, ImageFile]],
    names: list[str],
    folder: Path,
    placement: str,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[ExportImage]:
    """Place the images one by one, and decode their masks."""
    for done, ((image, file), name) in enumerate(zip(found, names, strict=True), 1):
        if placement != NONE:
            folder.mkdir(parents=True, exist_ok=True)
            file.place(folder / name, placement)
        yield image.decode(name, file.size)
        if on_progress is not None:
            on_progress(done, len(found))


def _list_notes(
    collected: Collected, files: list[ImageFile], layout: Layout, options: ExportOptions, top: Path
) -> list[str]:
    notes = []
    turned = sum(file.is_stored_anew for file in files)
    if turned and options.images == NONE:
        notes.append(
            f"{counted(turned, 'image')} with an EXIF orientation: the annotations belong to the upright image, and "
            "not all tools turn images; --images copy stores them upright"
        )
    elif turned:
        notes.append(f"{counted(turned, 'image')} with an EXIF orientation or a rare suffix: stored anew, upright")
    if options.images == NONE:
        notes.append(f"image files are not in the folder; the annotations name them from {top}")
    if collected.unnamed:
        notes.append(
            f"{counted(collected.unnamed, 'object')} without a name in the answer or the question: called 'object'; "
            "--label names the class of all objects"
        )
    if collected.phrases:
        notes.append(
            f"labelled by the expression of the question: {counted(collected.phrases, 'object')}; --label names one "
            "class for all"
        )
    objects = [each for image in collected.images.values() for each in image.objects]
    lost = {"scores": any(each.score is not None for each in objects)}
    lost["expressions"] = any(each.expression is not None for each in objects)
    if lacking := [what for what in layout.lacks if lost[what]]:
        notes.append(f"{' and '.join(lacking)} are left out: this format has no field for them")
    return notes


def _explain(log: SkipLog) -> str:
    if not log.entries:
        return "it has no answers, expected a result file of `swift infer --plugin himtok`"
    reason, count = log.counts.most_common(1)[0]
    example = next(detail for own, detail in log.entries if own == reason)
    return f"{reason} ({counted(count, 'time')}); for example {example:.300}"
