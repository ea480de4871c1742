"""Registers everything of the plugin with ms-swift, in one call from `plugin/himtok.py`."""

import multiprocessing
import sys
from pathlib import Path


def register() -> None:
    """Apply the patches and register model type, metric, optimizer, rewards, datasets and benchmarks; idempotent.

    Raises:
        RuntimeError: ms-swift's argument classes lack the plugin's options. In a `swift` command this is one line on
            stderr and exit status 2.
    """
    from . import patches
    from .options.log_filter import shorten_log
    from .samples.prepared_datasets import register_prepared_datasets
    from .training.mask_metrics import register_mask_metrics
    from .training.muon import register_muon
    from .training.reward_functions import register_rewards
    from .training.stage_one import register_mask_tokenizer

    _check_options_exist()
    shorten_log()
    patches.apply()
    register_mask_tokenizer()
    register_mask_metrics()
    register_muon()
    register_rewards()
    register_prepared_datasets()
    if "evalscope" in sys.modules:  # only `swift eval` imports it, and it is slow to import
        from .evaluation.evalscope_benchmarks import register_benchmarks

        register_benchmarks()


def _check_options_exist() -> None:
    """Without the start-up hook, ms-swift's own `--external_plugins` imports the plugin too late for its options.

    The hook takes the file for `--plugin himtok`. Processes that a `swift` command spawned, such as data-loader
    workers, use no argument classes.
    """
    from swift.arguments.base_args.template_args import TemplateArguments

    from himtok_plugin.startup import USAGE_ERROR, is_swift_command, refuse_megatron

    from .options.arguments import HimTokArguments

    if issubclass(TemplateArguments, HimTokArguments) or multiprocessing.parent_process() is not None:
        return
    verb = Path(sys.argv[0]).stem.replace("_", "-") if is_swift_command(sys.argv[0]) else "COMMAND"
    reason = (
        "--external_plugins: got the file of the plugin himtok, which ms-swift imports too late to add the plugin's "
        "options, as the start-up hook of himtok_plugin is not installed here, expected "
        f"python -m himtok_plugin.launch {verb} instead of swift {verb}"
    )
    try:
        refuse_megatron(sys.argv, sys.orig_argv)
    except ValueError as error:
        reason = str(error)
    else:
        if not is_swift_command(sys.argv[0]):
            raise RuntimeError(reason)
    print(f"error: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(USAGE_ERROR)
