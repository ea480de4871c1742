"""Files of checkpoints and adapters, read and written without loading a model: JSON, safetensors, PEFT's adapters.

`adapter_split.split_adapter` writes an adapter with trained token embeddings as a base model and a plain LoRA.

Does not know ms-swift's code; args.json is a JSON file here.
"""
