"""Numbers about masks, boxes and choices: cIoU, gIoU, boundary F, calibration error, reconstruction IoU.

Each metric is a class with `update`, `merge` and `compute`. Nothing in here knows files, protocols or LMMs.
"""

from .segmentation import SegmentationMetrics

__all__ = ["SegmentationMetrics"]
