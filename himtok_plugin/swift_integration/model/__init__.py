"""The loaded model: a mask tokenizer attached to an LMM, sharded or not, its adapters, and what it may generate."""
