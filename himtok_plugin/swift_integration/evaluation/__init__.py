"""`swift eval`: the plugin's benchmarks for evalscope."""
