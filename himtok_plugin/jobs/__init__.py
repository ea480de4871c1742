"""Running long jobs: a pool of worker processes, the processes of a distributed run, and output that can be resumed.

Does not know what the jobs do.
"""
