"""Score result files under named protocols; calibrate scores, compare two runs, write reports and pages.

Does not know how results were generated, and does not import ms-swift.
"""
