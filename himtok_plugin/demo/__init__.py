"""`himtok demo`: segment generated scenes with the shipped checkpoint, or with one trained from scratch.

Training and inference are `swift` commands as a user would type them; nothing here imports ms-swift.
"""
