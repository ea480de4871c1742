"""`python -m himtok_plugin.cli`, and so `torchrun -m himtok_plugin.cli tokenize ...`."""

from . import main

main()
