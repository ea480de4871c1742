"""`swift eval`: the plugin's benchmarks for evalscope.

Does not know how the evaluated server runs the model: a benchmark has its answers' text and log-probabilities only.
"""
