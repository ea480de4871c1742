"""Metrics of masks, boxes and multiple-choice answers, such as cIoU, gIoU, boundary F and calibration error.

Each is a class with `update`, `merge` and `compute`. Does not know files, protocols or LMMs.
"""

from .segmentation import SegmentationMetrics

__all__ = ["SegmentationMetrics"]
