"""An additional plugin for runs with ZeRO-3 in several processes on a CPU.

There transformers initializes torch.distributed but not DeepSpeed, which then shards a model as if there were a single
process. Accelerators do not need this plugin. Inference from such a run imports it too, because `args.json` has its
path, so it must also work in a single process.
"""

import os

import deepspeed
import torch.distributed as dist

if "RANK" in os.environ:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    deepspeed.init_distributed("gloo")
