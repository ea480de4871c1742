"""The plugin's options: definition, validation, ms-swift's argument classes, and what a checkpoint sets.

Does not know how the options are used. Importing it imports neither torch nor ms-swift: the start-up hook does so.
"""
