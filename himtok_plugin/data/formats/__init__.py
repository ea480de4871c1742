"""Readers of public annotation formats, one file each; `data/catalog.py` lists them.

Contract: a reader is created from a `Source` and yields `records.Record`s; see `reader.py`. It knows neither tasks nor
prompts nor samples.
"""
