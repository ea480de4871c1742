"""Generated data: scenes of coloured shapes with questions about them, and masks of objects. Knows no models."""
