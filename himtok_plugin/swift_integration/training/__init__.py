"""Training: the trainers of stages 1 to 3, optimizer, learning rates, metrics during training, and rewards for GRPO.

Does not know how ms-swift chooses a trainer, or how checkpoints are saved; see patches/.
"""
