"""Readers of public annotation formats, one file each; which there are says `catalog.py`.

Contract: a reader is made of a `Source` and yields `records.Record`s; see `reader.py`.
Does not know tasks, prompts and rows.
"""
