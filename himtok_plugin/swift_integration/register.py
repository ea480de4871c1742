"""Everything that the plugin registers with ms-swift, in one call.

Called by `plugin/himtok.py` alone; idempotent.
"""

import sys


def register() -> None:
    """Register model type, template, metric, optimizer, rewards, datasets, benchmarks and patches with ms-swift."""
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
    if "evalscope" in sys.modules:  # that is, in `swift eval`: it is not needed elsewhere, and slow to import
        from .evaluation.evalscope_benchmarks import register_benchmarks

        register_benchmarks()
