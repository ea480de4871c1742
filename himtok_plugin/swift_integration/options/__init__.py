"""The plugin's options: what they are, how ms-swift's argument classes get them, what a checkpoint says about them."""
