"""The precision of trainings on CPUs: half precision is never a default there.

ms-swift turns `--fp16` on for weights in float32. On a GPU that is faster; a CPU emulates float16, and a step takes
minutes instead of seconds (171 s in one LoRA run).
"""

from __future__ import annotations

from typing import Any


def choose_precision_on_cpus(args: Any) -> None:
    """Turn `--fp16` off for float32 on a CPU unless the user has set it, and warn if the user has turned it on.

    Args:
        args: ms-swift's training arguments, whose dtype is known and whose precision is not yet chosen.
    """
    import torch
    from swift.utils import get_logger

    if not getattr(args, "use_cpu", False) and torch.accelerator.is_available():
        return
    if args.fp16:
        get_logger().warning(
            "fp16: got true on a CPU, which emulates float16: a step can take minutes. Use --fp16 false."
        )
    elif args.fp16 is None and args.torch_dtype == torch.float32:
        args.fp16 = False
        get_logger().info("fp16: set to false, because this is a CPU. ms-swift's default for float32 is true.")
