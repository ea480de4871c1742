"""Training and evaluation data: generated scenes and converters from public annotation formats.

Contract: every producer here writes rows in the dataset format of the design (``messages``, ``images``, ``masks``),
or mask-only rows for stage 1. Nothing here knows of ms-swift or torch.
"""
