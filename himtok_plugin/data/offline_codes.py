"""The masks of a dataset to codes, once and for all: what `himtok tokenize` does.

Purpose: training on the output reads `mask_codes` and encodes nothing.
Contract: an output row is the input row, character by character, with `mask_codes` put at its end: for each mask, in
the order of `masks`, its k codes. Rows without masks pass as they are. Codes that a row brings along are made anew,
since nothing tells which mask tokenizer they are of. The squares are those of training (`mask_rows.py`), and so are the
codes, unless they are searched, whatever precision the LMM trains in. Bad rows are set aside, or stop the run. Kills,
resuming and several processes are `resumable_output.py`'s.
This module does not know text, ms-swift and the command line.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from himtok_plugin.jobs.processes import Processes
from himtok_plugin.jobs.resumable_output import REJECTED, ResumableOutput
from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.code_search import check_candidates

from .sample_reading import Task, read_samples
from .samples import CODES

CODES_BATCH = 64
MAX_WAITING = 4096  # rows kept back until a batch is full
REMEMBERED = 1 << 20  # masks whose codes are kept for their like; some hundred bytes each
# What codes depend on; the other fields of the configuration show in the tensors' shapes.
ENCODER_PARTS = ("latent_tokens", "encoder.", "quantize.")
ENCODER_FIELDS = ("image_size", "patch_size", "encoder_heads", "latent_layout")
DETOKENIZER_PARTS = ("decoder.", "pixel_decoder.")
DETOKENIZER_FIELDS = ("decoder_heads", "normalize_codebook", "output_scale", "output_shift", "pixel_groups")

OnRows = Callable[[int, int, int], None]  # rows finished, rows in all, rows rejected in this run


@dataclass(frozen=True)
class CodesSummary:
    """What a run did, over all its processes.

    Attributes:
        rows: lines of the input.
        finished_before: those of them that an earlier run had finished.
        masks: masks of the rows of this run.
        encoded: how many of those went through the encoder.
        reused: the others, which were the same as one of these.
        rejected: rows set aside, earlier runs included.
    """

    rows: int
    finished_before: int
    masks: int
    encoded: int
    reused: int
    rejected: int


def write_codes(
    source: Path,
    out: Path,
    mask_tokenizer: MaskTokenizer,
    *,
    candidates: int = 1,
    batch_size: int = CODES_BATCH,
    num_workers: int = 0,
    strict: bool = False,
    overwrite: bool = False,
    on_progress: OnRows | None = None,
) -> CodesSummary:
    """Write `out`, the rows of `source` with `mask_codes`; under torchrun every process calls this.

    Args:
        source: JSON lines.
        out: JSON lines; see `resumable_output.py` for what lies beside it.
        mask_tokenizer: trained, in evaluation mode, on the device that is to encode.
        candidates: codes tried at every position, see `MaskTokenizer.encode`; 1 gives the codes of training.
        batch_size: squares encoded at once.
        num_workers: processes that read masks, 0: this one does.
        strict: stop at the first bad row, instead of setting it aside in `out`.rejects.jsonl.
        overwrite: begin again, whatever is there.
        on_progress: called now and then, about this process's rows.
    Raises:
        ValueError: an argument out of range, an untrained mask tokenizer, a bad row of a strict run, or an `out` that
            was begun from something else.
        OSError: files that cannot be read or written, or a reading process that died.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}: expected at least {least}")
    check_candidates(candidates, mask_tokenizer.config.codebook_size)
    if not mask_tokenizer.config.codebook_ready:
        raise ValueError(
            f"mask tokenizer {mask_tokenizer.name_or_path!r}: codebook_ready is false, so its codes mean nothing: "
            "expected one that stage 1 has trained"
        )
    with Processes.started() as processes:
        fingerprint = encoder_fingerprint(mask_tokenizer, searched=candidates > 1)
        output = ResumableOutput(source, out, {"candidates": candidates, "mask_tokenizer": fingerprint}, processes)
        if (complete := output.begin(overwrite)) is not None:
            return CodesSummary(output.rows, output.rows, 0, 0, 0, complete["rejected"])
        encoder = _Encoder(mask_tokenizer, batch_size, candidates)
        with output.part(redo_rejected=strict) as part:
            tasks = read_samples(output.own_lines(part.finished), mask_tokenizer.config.image_size, num_workers)
            with closing(tasks):
                report = None if on_progress is None else _reporter(on_progress, part.finished, output.own_rows())
                for lines in _with_codes(tasks, encoder, strict, str(source)):
                    part.append(lines)
                    if report is not None:
                        report(lines)
            finished, masks, encoded = processes.sums([part.finished, encoder.masks, encoder.encoded])
            return CodesSummary(output.rows, finished, masks, encoded, masks - encoded, output.finish())


def _reporter(on_progress: OnRows, finished: int, total: int) -> Callable[[list[bytes]], None]:
    rejected = 0

    def report(lines: list[bytes]) -> None:
        nonlocal finished, rejected
        finished += len(lines)
        rejected += sum(line.startswith(REJECTED) for line in lines)
        on_progress(finished, total, rejected)

    on_progress(finished, total, rejected)
    return report


def encoder_fingerprint(mask_tokenizer: MaskTokenizer, searched: bool = False) -> str:
    """Hexadecimal digits that change with everything that codes depend on: with the de-tokenizer only if `searched`."""
    config, digest = mask_tokenizer.config, blake2b(digest_size=16)
    fields, parts = ENCODER_FIELDS, ENCODER_PARTS
    if searched:
        fields, parts = fields + DETOKENIZER_FIELDS, parts + DETOKENIZER_PARTS
    digest.update(json.dumps([getattr(config, field) for field in fields]).encode())
    for name, tensor in sorted(mask_tokenizer.state_dict().items()):
        if name.startswith(parts):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class _Codes:
    """Codes of one square as JSON, None until they are computed."""

    __slots__ = ("json",)

    def __init__(self) -> None:
        self.json: bytes | None = None


class _Encoder:
    """Encodes every different square once.

    Squares are told apart by a fingerprint of their content, so that the same mask is known again whether it came as a
    path, RLE or polygons. Only fingerprints and codes are remembered, the most recently used ones.
    """

    def __init__(self, mask_tokenizer: MaskTokenizer, batch_size: int, candidates: int) -> None:
        self.masks = self.encoded = 0
        self._mask_tokenizer = mask_tokenizer
        self._batch_size = batch_size
        self._candidates = candidates
        self._known: OrderedDict[bytes, _Codes] = OrderedDict()
        self._batch: list[tuple[_Codes, np.ndarray]] = []

    def ask(self, digest: bytes, square: np.ndarray) -> _Codes:
        """Codes that are there, or will be when the batch is full."""
        self.masks += 1
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest]
        codes = self._known[digest] = _Codes()
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self._batch.append((codes, square))
        if len(self._batch) == self._batch_size:
            self.encode()
        return codes

    def encode(self) -> None:
        """Encode what has gathered."""
        if not self._batch:
            return
        squares = torch.from_numpy(np.stack([square for _, square in self._batch]))
        squares = squares.to(self._mask_tokenizer.device).float() / 255  # on the device, as in training
        found = self._mask_tokenizer.encode(squares, self._candidates).tolist()
        for (codes, _), own in zip(self._batch, found, strict=True):
            codes.json = json.dumps(own).encode()
        self.encoded += len(self._batch)
        self._batch.clear()


def _with_codes(tasks: Iterable[Task], encoder: _Encoder, strict: bool, source: str) -> Iterator[list[bytes]]:
    """Finished lines in order, as soon as their codes are there.

    Raises:
        ValueError: a rejected row, if `strict`; the lines before it come first.
    """
    waiting: deque[tuple[bytes, list[_Codes] | None]] = deque()

    def finished() -> list[bytes]:
        lines = []
        while waiting and all(codes.json is not None for codes in waiting[0][1] or ()):
            lines.append(_put_together(*waiting.popleft()))
        return lines

    for rows, squares in tasks:
        for row in rows:
            if strict and row.line.startswith(REJECTED):
                encoder.encode()
                yield finished()
                raise ValueError(f"{source}: {json.loads(row.line.removeprefix(REJECTED))['error']}")
            asked = None if row.squares is None else [encoder.ask(digest, squares[digest]) for digest in row.squares]
            waiting.append((row.line, asked))
        if len(waiting) >= MAX_WAITING:
            encoder.encode()
        if lines := finished():
            yield lines
    encoder.encode()
    yield finished()


def _put_together(line: bytes, codes: list[_Codes] | None) -> bytes:
    if codes is None:
        return line
    return line[:-1] + f', "{CODES}": ['.encode() + b", ".join(code.json for code in codes) + b"]}"
