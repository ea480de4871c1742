"""`himtok demo`: scenes that were not trained on, segmented and drawn; with `--train`, the model is trained first."""
