"""`python -m himtok_plugin.launch sft ARGS`: what `swift sft --plugin himtok ARGS` does, without any start-up hook.

It is for places where Python does not run the hook of an installed package: a source tree, a wheel or another zip file
on PYTHONPATH, `pip install --target`. A YAML as the first argument, `NPROC_PER_NODE` and the other variables of
ms-swift's launcher work as with `swift`; `torchrun ... -m himtok_plugin.launch sft ARGS` works too. Other plugins come
along as usual: `--plugin himtok other`.
"""

import importlib.util
import os
import site
import subprocess
import sys
from pathlib import Path
from types import CodeType

from . import startup

MODULE = "himtok_plugin.launch"
MANY_PROCESS_COMMANDS = ("pt", "sft", "rlhf", "infer")  # those that ms-swift starts with torchrun


def prepare_command(arguments: list[str]) -> CodeType | list[str]:
    """Prepare this process for an ms-swift command.

    Args:
        arguments: the command and its arguments.
    Returns:
        The code of the command, to be run as `__main__`; or the command line of the torchrun that is to run it.
    Raises:
        ValueError: no such command, or ms-swift is missing.
    """
    if importlib.util.find_spec("swift") is None:
        raise ValueError("ms-swift is not installed here, expected it: pip install 'ms-swift>=4.6,<4.7'")
    from swift.cli.main import ROUTE_MAPPING, get_torchrun_args, parse_yaml_args

    command = arguments[0].replace("_", "-") if arguments else None
    if command not in ROUTE_MAPPING:
        raise ValueError(f"command: got {command!r}, expected one of {', '.join(ROUTE_MAPPING)}")
    arguments = arguments[1:]
    parse_yaml_args(arguments)
    _share_package()
    torchrun = get_torchrun_args() if command in MANY_PROCESS_COMMANDS and "LOCAL_RANK" not in os.environ else None
    if torchrun is not None:
        return [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", MODULE, command, *arguments]
    spec = importlib.util.find_spec(ROUTE_MAPPING[command])
    if spec is None or spec.origin is None:
        raise ValueError(f"ms-swift: got no file of {ROUTE_MAPPING[command]}, expected a complete installation")
    plugins = startup.requested_plugins(arguments)
    if startup.OWN_PLUGIN not in plugins:
        arguments += ["--plugin", startup.OWN_PLUGIN, *plugins]  # the last one counts
    sys.argv[:] = [spec.origin, *arguments]
    startup.run()
    with open(spec.origin, encoding="utf-8") as file:
        return compile(file.read(), spec.origin, "exec")


def _share_package() -> None:
    """Let child processes import this package from the same place, if Python does not look there by itself."""
    root = str(Path(__file__).resolve().parents[1])
    own = [str(Path(folder).resolve()) for folder in sys.path]
    inherited = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    standard = [*site.getsitepackages(), site.getusersitepackages()]
    if root in own and root not in {str(Path(folder).resolve()) for folder in (*inherited, *standard)}:
        os.environ["PYTHONPATH"] = os.pathsep.join([*inherited, root])


if __name__ == "__main__":
    try:
        _prepared = prepare_command(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(startup.USAGE_ERROR)
    if isinstance(_prepared, list):
        sys.exit(subprocess.run(_prepared).returncode)
    # In this module's own namespace: processes that multiprocessing spawns then import this module, not the script, as
    # their main module, and the plugins become active there as well.
    exec(_prepared)
elif __name__ == "__mp_main__":
    startup.activate_inherited()
