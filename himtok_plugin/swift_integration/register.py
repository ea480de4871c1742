"""Registers everything of the plugin with ms-swift, in one call from `plugin/himtok.py`."""

import sys


def register() -> None:
    """Apply the patches and register model type, metric, optimizer, rewards, datasets and benchmarks; idempotent."""
    from . import patches
    from .samples.prepared_datasets import register_prepared_datasets
    from .training.mask_metrics import register_mask_metrics
    from .training.muon import register_muon
    from .training.reward_functions import register_rewards
    from .training.stage_one import register_mask_tokenizer

    patches.apply()
    register_mask_tokenizer()
    register_mask_metrics()
    register_muon()
    register_rewards()
    register_prepared_datasets()
    if "evalscope" in sys.modules:  # only `swift eval` imports it, and it is slow to import
        from .evaluation.evalscope_benchmarks import register_benchmarks

        register_benchmarks()
