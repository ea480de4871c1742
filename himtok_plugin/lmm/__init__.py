"""The language model's side: mask tokens in its vocabulary, constrained generation, and access to its logits.

Does not know ms-swift, datasets or images.
"""
