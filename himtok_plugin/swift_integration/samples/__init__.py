"""From a dataset's samples to a batch: mask columns, ms-swift's template with masks, datasets by name.

Does not know losses, optimizers and trainers.
"""
