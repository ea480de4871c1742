"""Masks in answers: `swift infer`, engines, refinement, and `Segmenter` for Python.

Does not know how codes become masks and scores: prediction/ does that. HTTP, files and batches are ms-swift's.
"""
