"""What concerns the language model: its mask-token vocabulary, constrained generation, the tap on its logits.

Nothing in here knows ms-swift, datasets or images.
"""
