"""`himtok bench`: cost of the mask loss, speed of the mask tokenizer and of inference, cost of a training step.

Does not import ms-swift. Weights are random unless a checkpoint is given: their values do not change the cost.
"""
