"""HTML pages as single files that can be read offline: jinja2 templates, the style they share, embedded pictures.

Does not know samples, results or masks: callers pass plain values and PIL images to a template.
"""
