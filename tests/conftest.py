"""Its presence puts this folder on the path, so that tests in subfolders find `tiny_models`."""
