"""`himtok prepare check`: what can be wrong with a file of samples, and the page that shows samples to a person."""
