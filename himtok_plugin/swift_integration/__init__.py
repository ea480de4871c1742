"""Everything that knows ms-swift: one file per extension point, each with ms-swift's own noun as its name.

Importing this package does nothing; `register.register()` does. The core never imports from here.
"""
