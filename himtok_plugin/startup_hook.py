"""What Python calls at every start: the entry point in `himtok_plugin_startup.start` (PEP 829, Python 3.15 and later).

Python 3.14 and earlier execute the line in `himtok_plugin_startup.pth` instead; later ones ignore it, as there is a
`.start` file of the same name. The line has the same condition, because it must not import this package in processes
that do not need it, whereas Python 3.15 imports an entry point's module in all of them.

Contract: in a process that has nothing to do with `swift`, this imports only what Python has imported already.
"""

import os
import sys


def run_in_swift_processes() -> None:
    """Call `startup.run` if this process runs a command of ms-swift, or if one started it."""
    words = [*getattr(sys, "argv", [""])[:1], *sys.orig_argv]
    folder = os.path.join("swift", "cli")
    names_command = any(folder in word or word[:10] == "swift.cli." for word in words)
    launches_server = sys.orig_argv[2:3] in (["deploy"], ["app"]) and os.path.basename(sys.orig_argv[1]) == "swift"
    if names_command or launches_server or "HIMTOK_ACTIVE_PLUGINS" in os.environ:
        from .startup import run

        run()
