"""A further plugin for runs with ZeRO-3 in several processes on a CPU.

Transformers connects processes there by torch alone, without telling DeepSpeed, which then takes itself for the only
one when it shards the model that is being loaded. On accelerators nothing of this is needed. Inference from such a run
reads the name of this plugin in its `args.json`, in a process that nobody has launched as one of several.
"""

import os

import deepspeed
import torch.distributed as dist

if "RANK" in os.environ:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    deepspeed.init_distributed("gloo")
