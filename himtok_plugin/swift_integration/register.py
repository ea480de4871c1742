"""Everything that the plugin registers with ms-swift, in one call.

Called by `plugin/himtok.py` alone; idempotent.
"""


def register() -> None:
    """Register model type, template, metric and patches with ms-swift."""
    from . import patches
    from .evaluation import register_mask_metrics
    from .stage_one import register_mask_tokenizer

    patches.apply()
    register_mask_tokenizer()
    register_mask_metrics()
