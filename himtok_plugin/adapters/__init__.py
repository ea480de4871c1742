"""Adapters and their base models as files: `himtok split-adapter`. Does not know ms-swift, and loads no model."""
