"""Encodes the masks of a dataset once and for all: `himtok tokenize`. Training on its output reads `mask_codes`.

Contract: an output row is the input row, character by character, with `mask_codes` appended: the k codes of each of its
masks, in the order of `masks`. Rows without masks are copied. `mask_codes` of the input are replaced, because the mask
tokenizer that made them is unknown. Unless they are searched (`candidates`), the codes equal those of the training
step, whatever precision the LMM trains in. Bad rows are rejected, or stop a strict run. `jobs/resumable_output.py`
describes the files beside the output, resumed runs and several processes.
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
from himtok_plugin.mask_tokenizer.code_search import check_candidates, choose_encoding_batch

from .row_files import NO_ROWS, has_rows, iter_lines
from .sample_reading import ReadBatch, read_samples
from .samples import CODES

CODES_BATCH = 64
MAX_WAITING = 4096  # rows that wait for the codes of a batch that is not full
MAX_REMEMBERED = 1 << 20  # squares whose codes are kept for equal squares; a few hundred bytes each
# What codes depend on; the other fields of the configuration affect the shapes of the tensors.
ENCODER_PARTS = ("latent_tokens", "encoder.", "quantize.")
ENCODER_FIELDS = ("image_size", "patch_size", "encoder_heads", "latent_layout")
BOX_FIELDS = ("code_scheme", "box_tokens", "canvas_size")  # of other schemes than that of the released weights
DETOKENIZER_PARTS = ("decoder.", "pixel_decoder.")
DETOKENIZER_FIELDS = ("decoder_heads", "normalize_codebook", "output_scale", "output_shift", "pixel_groups")

OnRows = Callable[[int, int, int], None]  # (rows finished, rows in total, rows rejected in this run)


@dataclass(frozen=True)
class CodesSummary:
    """The figures of a run, summed over its processes.

    Attributes:
        rows: lines of the input.
        finished_before: rows that an earlier run finished.
        masks: masks of the rows of this run.
        encoded: squares that were encoded.
        reused: masks whose square equals an encoded one.
        rejected: rejected rows, including those of earlier runs.
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
    """Write the rows of `source` with `mask_codes` to `out`. Under torchrun, every process calls this.

    Args:
        source: JSON lines, or a JSON list of rows.
        out: JSONL; see `jobs/resumable_output.py` for the files beside it.
        mask_tokenizer: trained, in evaluation mode, on the device that encodes.
        candidates: codes to choose from at every position, see `MaskTokenizer.encode`; 1 gives the codes of training.
        batch_size: squares encoded at once; with `candidates`, fewer can be.
        num_workers: processes that read masks; 0: this process does.
        strict: stop at the first bad row instead of writing it to `out`.rejects.jsonl.
        overwrite: delete earlier results and begin again.
        on_progress: called from time to time, with the rows of this process.
    Raises:
        ValueError: an argument out of range, an untrained mask tokenizer, a bad row in a strict run, or an `out` that
            was begun from another input or mask tokenizer.
        OSError: files that cannot be read or written, or a worker process that was killed.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}: expected at least {least}")
    check_candidates(candidates, mask_tokenizer.config.codebook_size)
    if not mask_tokenizer.config.codebook_ready:
        raise ValueError(
            f"mask tokenizer {mask_tokenizer.name_or_path!r}: codebook_ready is false, so its codes are meaningless: "
            "expected one that stage 1 has trained"
        )
    if not has_rows(source):
        raise ValueError(f"{source}: {NO_ROWS}")
    with Processes.from_environment() as processes:
        fingerprint = encoder_fingerprint(mask_tokenizer, searched=candidates > 1)
        made_by: dict[str, str | int] = {"candidates": candidates, "mask_tokenizer": fingerprint}
        output = ResumableOutput(source, out, made_by, processes, iter_lines)
        if (complete := output.begin(overwrite)) is not None:
            return CodesSummary(output.rows, output.rows, 0, 0, 0, complete["rejected"])
        encoder = _Encoder(mask_tokenizer, choose_encoding_batch(batch_size, candidates), candidates)
        total = output.count_own_lines()
        with output.part(redo_rejected=strict) as part:
            batches = read_samples(output.own_lines(part.finished), mask_tokenizer.config.image_size, num_workers)
            with closing(batches):
                report = None if on_progress is None else _reporter(on_progress, part.finished, total)
                for lines in _append_codes(batches, encoder, strict, str(source)):
                    part.append(lines)
                    if report is not None:
                        report(lines)
            finished, masks, encoded = processes.sum([part.finished, encoder.masks, encoder.encoded])
            return CodesSummary(output.rows, finished, masks, encoded, masks - encoded, output.finish())


def _reporter(on_progress: OnRows, finished: int, total: int) -> Callable[[list[bytes]], None]:
    """A function that counts finished lines and passes the counts to `on_progress`."""
    rejected = 0

    def report(lines: list[bytes]) -> None:
        nonlocal finished, rejected
        finished += len(lines)
        rejected += sum(line.startswith(REJECTED) for line in lines)
        on_progress(finished, total, rejected)

    on_progress(finished, total, rejected)
    return report


def encoder_fingerprint(mask_tokenizer: MaskTokenizer, searched: bool = False) -> str:
    """A hash of everything that codes depend on, which includes the de-tokenizer only if they are `searched`."""
    config, digest = mask_tokenizer.config, blake2b(digest_size=16)
    fields: tuple[str, ...] = ENCODER_FIELDS
    parts: tuple[str, ...] = ENCODER_PARTS
    if config.code_scheme != "square":
        fields += BOX_FIELDS
    if searched:
        fields, parts = fields + DETOKENIZER_FIELDS, parts + DETOKENIZER_PARTS
    digest.update(json.dumps([getattr(config, field) for field in fields]).encode())
    for name, tensor in sorted(mask_tokenizer.state_dict().items()):
        if name.startswith(parts):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class _PendingCodes:
    """The codes of one square as JSON; empty until they are computed."""

    __slots__ = ("json",)

    def __init__(self) -> None:
        self.json = b""


class _Encoder:
    """Encodes every different square once.

    Squares are compared by a hash of their content, so that equal masks are found whether they are stored as a file,
    RLE or polygons. The hashes and codes of the most recently used squares are kept.
    """

    def __init__(self, mask_tokenizer: MaskTokenizer, batch_size: int, candidates: int) -> None:
        self.masks = self.encoded = 0
        self._mask_tokenizer = mask_tokenizer
        self._batch_size = batch_size
        self._candidates = candidates
        self._known: OrderedDict[bytes, _PendingCodes] = OrderedDict()
        self._batch: list[tuple[_PendingCodes, np.ndarray]] = []

    def request(self, digest: bytes, square: np.ndarray) -> _PendingCodes:
        """The codes of a square, which are filled in when its batch is encoded."""
        self.masks += 1
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest]
        codes = self._known[digest] = _PendingCodes()
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        self._batch.append((codes, square))
        if len(self._batch) == self._batch_size:
            self.encode()
        return codes

    def encode(self) -> None:
        """Encode the current batch, full or not."""
        if not self._batch:
            return
        squares = torch.from_numpy(np.stack([square for _, square in self._batch]))
        squares = squares.to(self._mask_tokenizer.device).float() / 255  # on the device, as in training
        found = self._mask_tokenizer.encode(squares, self._candidates).tolist()
        for (codes, _), own in zip(self._batch, found, strict=True):
            codes.json = json.dumps(own).encode()
        self.encoded += len(self._batch)
        self._batch.clear()


def _append_codes(batches: Iterable[ReadBatch], encoder: _Encoder, strict: bool, source: str) -> Iterator[list[bytes]]:
    """Yield finished lines in order, as soon as their codes are computed.

    Raises:
        ValueError: a rejected row, if `strict`, after the lines before it.
    """
    waiting: deque[tuple[bytes, list[_PendingCodes] | None]] = deque()

    def finished() -> list[bytes]:
        lines = []
        while waiting and all(codes.json for codes in waiting[0][1] or ()):
            lines.append(_complete_line(*waiting.popleft()))
        return lines

    for samples, squares in batches:
        for sample in samples:
            if strict and sample.line.startswith(REJECTED):
                encoder.encode()
                yield finished()
                raise ValueError(f"{source}: {json.loads(sample.line.removeprefix(REJECTED))['error']}")
            codes = None
            if sample.squares is not None:
                codes = [encoder.request(digest, squares[digest]) for digest in sample.squares]
            waiting.append((sample.line, codes))
        if len(waiting) >= MAX_WAITING:
            encoder.encode()
        if lines := finished():
            yield lines
    encoder.encode()
    yield finished()


def _complete_line(line: bytes, codes: list[_PendingCodes] | None) -> bytes:
    if codes is None:
        return line
    return line[:-1] + f', "{CODES}": ['.encode() + b", ".join(own.json for own in codes) + b"]}"
