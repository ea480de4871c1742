"""Search for the codes whose decoded mask is closest to the square (analysis by synthesis).

The encoder predicts all codes at once without decoding them. A small or briefly trained encoder therefore misses better
codes nearby (the amortization gap, arXiv 1801.03558). The search changes codes as long as masks come closer. One
backward pass of the de-tokenizer estimates, to first order, what each change of a single code would gain; only the most
promising changes are decoded, as in the greedy coordinate gradient search for discrete prompts (arXiv 2307.15043).

Contract: codes come from the candidates. The mask of the codes found is never farther from the square than that of the
nearest codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from himtok_plugin.hierarchical_loss import bce_per_mask, dice_per_mask

SEARCHED_AT_ONCE = 8  # squares; their changes fill the batches of the de-tokenizer, and progress is reported often
DECODED_AT_ONCE = 32  # masks, because the convolutions of the de-tokenizer need memory
DECODED_BY_THREAD = 4  # masks at once on CPUs, where the convolutions of more do not stay in the cache
CHANGES_PER_ROUND = 4  # decoded for each square before its gradient is computed again
GRADIENT_COST = 3  # of a forward and a backward pass, in decoded masks
DECODES_PER_TOKEN, DECODES_PER_CANDIDATE = 4, 2  # of the default budget

MapParts = Callable[..., list[Any]]  # (function, tensors) -> what the function returns for each part


@dataclass(frozen=True)
class SearchedDecoder:
    """What the search needs of a mask tokenizer.

    Attributes:
        code_vectors: (n, k) int64 codes -> (n, k, d) float32.
        decode: (n, k, d) code vectors -> (n, s, s) float32 in [0, 1], with gradient.
    """

    code_vectors: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def distance(self, codes: Tensor, squares: Tensor) -> Tensor:
        """(n, k) codes, (n, s, s) squares -> (n,) float32, BCE + Dice of the decoded masks."""
        with torch.no_grad():
            return _distance(self.decode(self.code_vectors(codes)), squares)

    def gradient(self, codes: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """The same distances, and their gradients by the code vectors, (n, k, d) float32."""
        # Callers may compute without gradients; tensors that they made so cannot be part of a graph.
        with torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                vectors, target = self.code_vectors(codes.clone()).clone(), squares.clone()
            distances = _distance(self.decode(vectors.requires_grad_()), target)
            return distances.detach(), torch.autograd.grad(distances.sum(), vectors)[0]


@torch.no_grad()
def search_codes(nearest: Tensor, squares: Tensor, decoder: SearchedDecoder, decodes: int | None = None) -> Tensor:
    """Find codes whose decoded mask is close to the square, measured by BCE + Dice.

    Args:
        nearest: (b, k, c) int64, candidates for each position; the search starts with the first of them.
        squares: (b, s, s) float in [0, 1].
        decoder: decodes codes.
        decodes: about how many masks are decoded for each square, at least 1; None: 4 k + 2 c. A search ends earlier
            when no change of a single code brings the mask closer.

    Returns:
        (b, k) int64.

    Raises:
        ValueError: `decodes` out of range.
    """
    tokens, count = nearest.shape[1:]
    if decodes is None:
        decodes = DECODES_PER_TOKEN * tokens + DECODES_PER_CANDIDATE * count
    if decodes < 1:
        raise ValueError(f"decodes={decodes}: expected at least 1")
    with _map_in_parts(squares.device) as map_parts:
        search = _Search(nearest, squares, decoder, map_parts)
        active = torch.arange(len(squares), device=squares.device)
        while len(active):
            search.update_gradients(active[search.is_stale[active]])
            search.try_changes(active)
            goes_on = search.is_stale[active] | ~search.tried[active].flatten(1).all(dim=1)
            active = active[goes_on & (search.spent[active] < decodes)]
        return search.codes


@contextmanager
def _map_in_parts(device: torch.device) -> Iterator[MapParts]:
    """Yield a function that calls another with all parts of two tensors and returns its results.

    On CPUs each thread takes parts of its own. Threads that share every operation, as torch's do, wait for each other
    after each, which takes most of the time when other processes use the cores as well.
    """
    if device.type != "cpu":
        yield lambda function, *tensors: list(map(function, *(each.split(DECODED_AT_ONCE) for each in tensors)))
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield lambda function, *tensors: list(pool.map(function, *(each.split(DECODED_BY_THREAD) for each in tensors)))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a part of this setting is shared by all threads


class _Search:
    """The state of the search: a row for each square.

    Attributes:
        codes: (b, k) int64, the best so far.
        distances: (b,) float32, of their masks.
        gradients: (b, k, d) float32, of the distances.
        is_stale: (b,) bool, whether the codes have changed since the gradient was computed.
        tried: (b, k, c) bool, candidates that were decoded at their position since then, or are the current code.
        spent: (b,) int64, cost in decoded masks.
    """

    def __init__(self, nearest: Tensor, squares: Tensor, decoder: SearchedDecoder, map_parts: MapParts) -> None:
        self._nearest, self._squares, self._decoder, self._map = nearest, squares, decoder, map_parts
        self.codes = nearest[:, :, 0].clone()
        self._vectors = decoder.code_vectors(nearest.flatten(1)).unflatten(1, nearest.shape[1:])  # (b, k, c, d)
        self.distances = torch.full(squares.shape[:1], torch.inf, device=squares.device)
        self.gradients = torch.zeros_like(self._vectors[:, :, 0])
        self.is_stale = torch.ones_like(self.distances, dtype=torch.bool)
        self.tried = torch.zeros_like(nearest, dtype=torch.bool)
        self.spent = torch.zeros_like(nearest[:, 0, 0])

    def update_gradients(self, rows: Tensor) -> None:
        """Compute the gradients of some rows anew."""
        if not len(rows):
            return
        codes = self.codes[rows]
        parts = self._map(self._decoder.gradient, codes, self._squares[rows])
        self.distances[rows], self.gradients[rows] = map(torch.cat, zip(*parts, strict=True))
        self.tried[rows] = self._nearest[rows] == codes[..., None]
        self.is_stale[rows] = False
        self.spent[rows] += GRADIENT_COST

    def try_changes(self, rows: Tensor) -> None:
        """Decode the most promising changes of some rows, one by one and the good ones together; keep the best."""
        positions, candidates, is_new = self._promising_changes(rows)
        count = positions.shape[1]
        self.tried[rows[:, None], positions, candidates] = True
        changed = self._nearest[rows[:, None], positions, candidates]  # (n, count)
        before, squares = self.codes[rows], self._squares[rows]
        single = before[:, None].repeat(1, count, 1).scatter(2, positions[..., None], changed[..., None])
        distances = torch.full(positions.shape, torch.inf, device=squares.device)
        owner = is_new.nonzero()[:, 0]
        distances[is_new] = self._distances(single[is_new], squares[owner])
        self.spent[rows] += is_new.sum(dim=1)

        # Changes of different positions are independent to first order, so the best two are also tried together, the
        # best three, and so on.
        order = distances.argsort(dim=1)
        improves = distances.gather(1, order) < self.distances[rows, None]
        joined, codes = [single], before
        for i in range(count):
            change = codes.scatter(1, positions.gather(1, order[:, i : i + 1]), changed.gather(1, order[:, i : i + 1]))
            codes = torch.where(improves[:, i : i + 1], change, codes)
            joined.append(codes[:, None])
        several = torch.full_like(distances, torch.inf)
        is_several = improves.clone()
        is_several[:, 0] = False
        owner = is_several.nonzero()[:, 0]
        tries = torch.cat(joined, dim=1)  # (n, 2 count, k)
        several[is_several] = self._distances(tries[:, count:][is_several], squares[owner])
        self.spent[rows] += is_several.sum(dim=1)

        closest, chosen = torch.cat([distances, several], dim=1).min(dim=1)
        better = closest < self.distances[rows]
        self.codes[rows[better]] = tries[better, chosen[better]]
        self.distances[rows[better]] = closest[better]
        self.is_stale[rows[better]] = True

    def _distances(self, codes: Tensor, squares: Tensor) -> Tensor:
        """(n, k) codes, (n, s, s) squares -> (n,) float32; n may be 0."""
        return torch.cat(self._map(self._decoder.distance, codes, squares))

    def _promising_changes(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (n, m) int64, candidates there, and whether they are untried; different positions in each row."""
        codes = self._decoder.code_vectors(self.codes[rows])
        moves = self._vectors[rows] - codes[:, :, None]
        growth = torch.einsum("nkd,nkcd->nkc", self.gradients[rows], moves).masked_fill(self.tried[rows], torch.inf)
        at_position, candidates = growth.min(dim=2)
        least, positions = at_position.topk(min(CHANGES_PER_ROUND, at_position.shape[1]), dim=1, largest=False)
        return positions, candidates.gather(1, positions), least < torch.inf


def _distance(decoded: Tensor, target: Tensor) -> Tensor:
    return bce_per_mask(decoded, target) + dice_per_mask(decoded, target)


def choose_encoding_batch(batch: int, candidates: int) -> int:
    """Choose how many masks to encode at once, so that a search reports its progress often enough.

    Args:
        batch: number of masks without a search.
        candidates: at each position; 1 is no search.
    """
    return batch if candidates == 1 else min(batch, SEARCHED_AT_ONCE)


def check_candidates(candidates: int, codebook_size: int) -> None:
    """Check the number of candidates per position.

    Raises:
        ValueError: it is not in [1, codebook_size].
    """
    if not 1 <= candidates <= codebook_size:
        raise ValueError(f"candidates={candidates}: expected 1 to {codebook_size}, the size of the codebook")
