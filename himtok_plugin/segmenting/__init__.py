"""Questions about image files, answered one after the other: what `himtok segment` does.

Loads a checkpoint through `himtok_plugin.Segmenter`, or asks a server through `client/`; the answers have one form.
"""
