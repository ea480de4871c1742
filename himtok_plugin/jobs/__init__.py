"""How long work runs: a pool of worker processes, the processes of one distributed run, output that can be resumed.

Nothing in here knows what the work is.
"""
