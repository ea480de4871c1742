"""`swift eval`."""

from __future__ import annotations

import sys

from .replacing import around


def evaluate_without_opencompass() -> None:
    """What: `swift eval` with evalscope's own backend, the default, asks for evalscope's own benchmarks only, and finds
    its name for a server.
    Why: ms-swift lists OpenCompass's as well, whichever backend is asked for, and fails where that is not installed;
    evalscope 1.14 calls `openai_api` what was `service` before.
    Goes when: ms-swift lists those of the backend at hand, and knows the new name.
    """
    if "evalscope" not in sys.modules:  # then this is no `swift eval`
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
