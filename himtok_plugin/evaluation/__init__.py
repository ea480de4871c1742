"""Result files scored under named protocols: truths, scores, calibration, comparison of two runs, reports and pages.

Nothing in here knows how the results were generated, or ms-swift.
"""
