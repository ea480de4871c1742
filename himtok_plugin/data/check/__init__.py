"""`himtok prepare check`: finds faults in files of samples, and writes a page that shows samples."""
