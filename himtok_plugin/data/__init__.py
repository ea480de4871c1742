"""Training and evaluation data: annotations to samples, generated scenes, checks, and codes made offline.

Contract: samples are in the dataset format of the package (`messages`, `images`, `masks`), or have `masks` alone, for
stage 1. This folder knows neither language models nor ms-swift; of its modules, only `offline_codes.py` needs torch.
"""
