"""Data that this package draws itself: scenes of coloured shapes with questions about them, and masks of objects."""
