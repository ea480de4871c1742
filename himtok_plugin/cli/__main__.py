"""Makes `python -m himtok_plugin.cli` work, and with it `torchrun -m himtok_plugin.cli tokenize ...`."""

from . import main

main()
