"""Trainers of stages 1 to 3, their optimizer and learning rates, metrics while training, rewards for GRPO."""
