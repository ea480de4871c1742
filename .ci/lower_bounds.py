"""Prints the lower bound of each requirement in setup.py as a constraint for pip: `torch==2.9.1`."""

import re
from pathlib import Path

setup = (Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
bounds = re.findall(r'"([\w-]+)>=([\d.]+)', setup)
print("\n".join(sorted({f"{name}=={version}" for name, version in bounds})))
