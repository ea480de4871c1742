"""From the answer of an LMM to masks of the image's size: decoding, scores, refinement, rewards, result objects.

Does not know which engine generated the answer, and does not import ms-swift.
"""
