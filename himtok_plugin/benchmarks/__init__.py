"""`himtok bench`: what the mask loss costs, how fast masks are generated, where a training step spends its time."""
