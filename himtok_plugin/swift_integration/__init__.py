"""The plugin for ms-swift: everything in this package that imports ms-swift.

`options/` are the plugin's options, `model/` the loaded model, `samples/` the way from dataset to batch, `training/`
trainers and losses, `answering/` inference and serving, `evaluation/` evalscope's benchmarks, `patches/` replaced
functions of ms-swift. Importing these registers nothing; `register.register()` does. The rooms outside do not import
from here.
"""
