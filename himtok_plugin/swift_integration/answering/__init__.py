"""Masks out of answers: `swift infer`, `swift deploy`, the second look of a refiner, and `Segmenter` for Python."""
