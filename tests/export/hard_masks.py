"""Masks with what makes exports hard: holes, several parts, slanted borders, single pixels."""

import numpy as np

SIZE = (60, 80)


def disc(size, centre, radius):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def ring(size=SIZE):
    """A disc with a hole."""
    return disc(size, (30, 30), 22) & ~disc(size, (28, 33), 9)


def two_parts(size=SIZE):
    return disc(size, (15, 15), 11) | disc(size, (44, 60), 13)


def pixel(size=SIZE):
    mask = np.zeros(size, bool)
    mask[7, 70] = True
    return mask


def iou(a, b):
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)
