"""From an LMM's answer to masks at the image's own size: decoding, scores, refinement, result objects and files.

Nothing in here knows which engine generated the answer, or ms-swift.
"""
