"""Lines of ms-swift's log that mislead, or that hide the others, are left out or shortened.

Contract: `shorten_log` filters the logger of ms-swift, once per process. With `LOG_LEVEL=DEBUG`, ms-swift's own
variable, the log is complete.

- "This will execute custom Python code": ms-swift writes this for each model that it loads, whether there is code or
  not. It is left out for local folders without a Python file and without an `auto_map`, which names one elsewhere.
- The tree of a model's modules, hundreds of lines, is shortened to the model's class.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

_TREE = re.compile(r"\s*model: (\w+)\(\n")
_CUSTOM_CODE = re.compile(r"Loading [\w/]+ from '(.+)' with trust_remote_code=True")


class LogFilter(logging.Filter):
    """The filter of `shorten_log`."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.msg if isinstance(record.msg, str) else ""
        if record.levelno == logging.INFO and (tree := _TREE.match(text)):
            record.msg = f"model: {tree[1]} (LOG_LEVEL=DEBUG shows its modules)"
        code = _CUSTOM_CODE.match(text)
        return code is None or _may_have_code(Path(code[1]))


def _may_have_code(folder: Path) -> bool:
    """Return whether loading can execute code that the folder has or names; true for hub ids, not known here."""
    if not folder.is_dir() or any(folder.glob("*.py")):
        return True
    return any("auto_map" in path.read_text(encoding="utf-8", errors="ignore") for path in folder.glob("*config.json"))


def shorten_log() -> None:
    """Filter ms-swift's log in this process, unless LOG_LEVEL is DEBUG."""
    logger = logging.getLogger("swift")
    if not logger.isEnabledFor(logging.DEBUG) and not any(isinstance(each, LogFilter) for each in logger.filters):
        logger.addFilter(LogFilter())
