"""Where things lie, for tests in folders of any depth."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "himtok_plugin"
EXAMPLES = ROOT / "examples"
PARITY = Path(os.environ.get("HIMTOK_PARITY") or ROOT.parent / "shared" / "parity")  # numbers of the reference
