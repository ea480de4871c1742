"""Files of checkpoints and adapters, read and written without loading a model: JSON, safetensors, PEFT's adapters.

`file_contents` says what a file really is, and `model_folder` checks all files that a model is loaded from.

Does not know ms-swift's code; args.json is a JSON file here.
"""
