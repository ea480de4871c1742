"""Tracks of "CVAT for video 1.1": objects with a shape at each key frame, and between these as CVAT interpolates them.

Contract: `read_tracks` reads the tracks of an XML, `interpolate_track` gives the shape of each frame in which an object
is visible. CVAT exports the frames between key frames as well; what is missing is interpolated: rectangles and ellipses
linearly, polygons point by point, each with the point at the nearest share of the other's outline. A painted mask has
no shape between its key frames. After its last shape an object stays as it is, unless that shape is `outside`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from himtok_plugin.data.skip_log import BAD_ENTRY, AnnotationError, SkipLog
from himtok_plugin.validation import abridged, counted

NOT_INTERPOLATED = "track has no shape in this frame: masks, and shapes of two kinds, are not interpolated"
MOST_FRAMES = 1_000_000  # over nine hours of video; a slip of the pen in a number must not fill the memory
_NUMBERS = {"box": ("xtl", "ytl", "xbr", "ybr"), "ellipse": ("cx", "cy", "rx", "ry")}
_STEP = re.compile(r"step\s*=\s*(\d+)")
_FRAME_NAME = re.compile(r"frame_(\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Track:
    """An object of a video: its number and its shapes by frame. Shapes have the track's label."""

    id: str
    shapes: dict[int, ElementTree.Element]


@dataclass
class Video:
    """The tracks of an XML, and what its header says about the video.

    Attributes:
        first, last, step: of the frames; None: not stated.
        size: (h, w) of the frames; None: not stated.
    """

    tracks: list[Track] = field(default_factory=list)
    first: int = 0
    last: int | None = None
    step: int = 1
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class FrameItem:
    """A frame with an object in it: its number, the path of its image, and the shapes as XML."""

    number: int
    image: str
    shapes: tuple[bytes, ...]


def read_tracks(path: Path, log: SkipLog) -> Video:
    """Read the tracks of an XML; those that cannot be read are added to the log."""
    video = Video()
    header: dict[str, str] = {}
    for _, element in ElementTree.iterparse(path):
        if element.tag == "track":
            try:
                video.tracks.append(_read_track(element))
            except AnnotationError as error:
                log.add(error.reason, f"{path.name}: track {element.get('id')}: {error.detail}")
            element.clear()
        elif element.tag in ("start_frame", "stop_frame", "frame_filter", "size"):
            header.setdefault(element.tag, (element.text or "").strip())
        elif element.tag == "original_size":
            width, height = element.findtext("width", "").strip(), element.findtext("height", "").strip()
            size = _parse_number(height), _parse_number(width)
            video.size = (size[0], size[1]) if size[0] and size[1] else None
    if step := _STEP.search(header.get("frame_filter", "")):
        video.step = max(_parse_number(step[1]) or 1, 1)
    video.first = _parse_number(header.get("start_frame", "")) or 0
    video.last = _parse_number(header.get("stop_frame", ""))
    if video.last is None and (count := _parse_number(header.get("size", ""))) is not None:
        video.last = min(video.first + (count - 1) * video.step, MOST_FRAMES)
    return video


def _parse_number(text: str) -> int | None:
    """A number of frames or pixels; None: it is none, or larger than in any video."""
    number = int(text) if text.isdecimal() and len(text) < len(str(MOST_FRAMES)) + 1 else None
    return None if number is None or number > MOST_FRAMES else number


def _read_track(element: ElementTree.Element) -> Track:
    shapes: dict[int, ElementTree.Element] = {}
    for shape in element:
        frame = _parse_number(shape.get("frame", ""))
        if frame is None:
            found = f"<{shape.tag}> has the frame {abridged(shape.get('frame'))}"
            raise AnnotationError(BAD_ENTRY, f"{found}: expected a number of at most {MOST_FRAMES}")
        shape.set("label", element.get("label", ""))
        if element.get("group_id"):
            shape.set("group_id", element.get("group_id", ""))
        shape.tail = None
        shapes[frame] = shape
    if not shapes:
        raise AnnotationError(BAD_ENTRY, "has no shapes: expected one for each key frame")
    return Track(str(element.get("id")), dict(sorted(shapes.items())))


def interpolate_track(track: Track, video: Video, log: SkipLog) -> Iterator[tuple[int, ElementTree.Element]]:
    """(frame, shape) of each frame in which the object is visible."""
    frames = list(track.shapes)
    for frame, following in zip(frames, [*frames[1:], None], strict=True):
        shape = track.shapes[frame]
        if shape.get("outside") == "1":
            continue
        yield frame, shape
        if following is None:
            if video.last is not None and shape.tag != "mask":
                yield from ((later, shape) for later in range(frame + video.step, video.last + 1, video.step))
            continue
        between = range(frame + video.step, following, video.step)
        other = track.shapes[following]
        if between and (shape.tag != other.tag or shape.tag == "mask"):
            log.add_all(NOT_INTERPOLATED, [f"track {track.id}, {shape.get('label')}, frame {n}" for n in between])
            continue
        for number in between:
            yield number, _interpolate(shape, other, (number - frame) / (following - frame))


def _interpolate(first: ElementTree.Element, second: ElementTree.Element, share: float) -> ElementTree.Element:
    """A shape at some share, in (0, 1), of the way from one shape to another of the same kind."""
    found = ElementTree.Element(first.tag, first.attrib)
    found.extend(first)
    try:
        for key in _NUMBERS.get(first.tag, ()):
            begin, end = float(first.get(key, "")), float(second.get(key, ""))
            found.set(key, repr(begin + (end - begin) * share))
        if first.get("rotation") or second.get("rotation"):
            begin, end = float(first.get("rotation") or 0), float(second.get("rotation") or 0)
            found.set("rotation", repr(begin + ((end - begin + 180) % 360 - 180) * share))  # the shorter way round
        if first.tag == "polygon":
            points = _interpolate_polygon(_parse_points(first), _parse_points(second), share)
            found.set("points", ";".join(f"{x!r},{y!r}" for x, y in points.tolist()))
    except ValueError:
        pass  # a bad number of a key frame is copied, and reported where the shape is drawn
    return found


def _parse_points(shape: ElementTree.Element) -> np.ndarray:
    points = [[float(value) for value in point.split(",")] for point in shape.get("points", "").split(";")]
    array = np.array(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise ValueError(shape.get("points", ""))
    return array


def _interpolate_polygon(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Polygons (n, 2) and (m, 2) -> one of at most n + m points.

    As in CVAT, each point belongs to the point of the other polygon whose share of the outline's length is nearest;
    points of the second polygon that are left over belong to their nearest one of the first.
    """
    along, other = _shares_of_outline(first), _shares_of_outline(second)
    pairs = [(i, int(np.abs(other - value).argmin())) for i, value in enumerate(along)]
    known = {j for _, j in pairs}
    pairs += [(int(np.abs(along - value).argmin()), j) for j, value in enumerate(other) if j not in known]
    # Both outlines are closed: their last point is the first one again, and is left out.
    ordered = sorted(pairs)[:-1]
    closed_first, closed_second = np.concatenate([first, first[:1]]), np.concatenate([second, second[:1]])
    return np.array([closed_first[i] + (closed_second[j] - closed_first[i]) * share for i, j in ordered])


def _shares_of_outline(points: np.ndarray) -> np.ndarray:
    """(n + 1,): the length of the closed outline up to each point, from 0 to 1."""
    closed = np.concatenate([points, points[:1]])
    lengths = np.concatenate([[0.0], np.hypot(*np.diff(closed, axis=0).T).cumsum()])
    return lengths / max(lengths[-1], 1e-9)


def match_frames(video: Video, images: Sequence[Path], frames: Sequence[int], where: Path) -> dict[int, Path]:
    """Frame -> image: by number if images are called frame_000012, otherwise in the natural order of their names.

    Raises:
        ValueError: there are no images, or their order cannot be that of the frames.
    """
    if not images:
        raise ValueError(
            f"{where}: has {counted(len(video.tracks), 'track')} of a video and no images: expected its frames as "
            "images/frame_000000.png, …; export the task with images"
        )
    numbers = [_FRAME_NAME.match(image.stem) for image in images]
    if all(numbers):
        return {int(number[1]): image for number, image in zip(numbers, images, strict=True) if number is not None}
    last = max(frames, default=0) if video.last is None else video.last
    count = (last - video.first) // video.step + 1
    if len(images) < count or (video.last is not None and len(images) != count):
        raise ValueError(
            f"{where}: has tracks in {counted(count, 'frame')}, and {counted(len(images), 'image')}: expected an image "
            "for each frame, or names like frame_000012.png"
        )
    ordered = sorted(images, key=lambda image: _natural_key(image.as_posix()))
    return {video.first + i * video.step: image for i, image in enumerate(ordered)}


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts image_2 before image_10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
