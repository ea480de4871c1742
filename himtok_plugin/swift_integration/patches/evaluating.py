"""`swift eval`: benchmarks and server types of evalscope."""

from __future__ import annotations

import sys

from .replacing import around


def list_evalscope_benchmarks() -> None:
    """What: with the default backend Native, `swift eval` lists evalscope's own benchmarks only. `EvalType.SERVICE` is
    `EvalType.OPENAI_API`.
    Why: ms-swift lists the benchmarks of OpenCompass with every backend, and fails if OpenCompass is not installed.
    evalscope has renamed `service` to `openai_api`.
    Goes when: ms-swift lists the benchmarks of the chosen backend only, and uses the new name.
    Upstream: modelscope/evalscope#105 (OpenCompass's list fails), modelscope/evalscope#789 and #888 (the new name).
    """
    if "evalscope" not in sys.modules:  # this is not `swift eval`
        return
    from evalscope.api.registry import BENCHMARK_REGISTRY
    from evalscope.constants import EvalBackend, EvalType
    from swift.arguments import EvalArguments

    if not hasattr(EvalType, "SERVICE"):
        EvalType.SERVICE = EvalType.OPENAI_API

    @around(EvalArguments, "list_eval_dataset")
    def list_eval_dataset(original, eval_backend=None):
        if eval_backend == EvalBackend.NATIVE:
            return {EvalBackend.NATIVE: sorted(BENCHMARK_REGISTRY.keys())}
        return original(eval_backend)
