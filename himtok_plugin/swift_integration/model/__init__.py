"""The loaded model: its mask tokenizer, adapters, sharding, and what it may generate.

Does not know datasets, batches, losses and trainers.
"""
