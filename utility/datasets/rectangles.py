"""Rectangles in an image: what is left around some, and the largest one that is free."""
from __future__ import annotations

import numpy as np

Rectangle = tuple[int, int, int, int]  # top, left, height, width, in pixels


def training_rectangles(size: tuple[int, int], *held: Rectangle) -> list[Rectangle]:
    """Rectangles that cover a scene of `size` except the rectangles `held`; no two share a pixel.

    Around one held rectangle they are up to four: above and below it as wide as the scene, beside
    it as high as it.
    """
    around = [(0, 0, *size)]
    for rectangle in held:
        around = [part for whole in around for part in without(whole, rectangle)]
    return around


def without(whole: Rectangle, held: Rectangle) -> list[Rectangle]:
    """Up to four rectangles that cover `whole` except `held`; [whole] if the two do not overlap."""
    (top, left, height, width), (first, start, h, w) = whole, held
    first, start, last, end = (max(top, first), max(left, start), min(top + height, first + h),
                               min(left + width, start + w))
    if first >= last or start >= end:
        return [whole]
    around = [(top, left, first - top, width), (last, left, top + height - last, width),
              (first, left, last - first, start - left),
              (first, end, last - first, left + width - end)]
    return [r for r in around if r[2] > 0 and r[3] > 0]


def corners(whole: Rectangle, height: int, width: int) -> list[Rectangle]:
    """The four rectangles of this size in the corners of `whole`, the lower right one first."""
    top, left, h, w = whole
    return [(row, column, height, width) for row in (top + h - height, top)
            for column in (left + w - width, left)]


def largest_rectangle(free: np.ndarray) -> Rectangle:
    """The largest rectangle of True in (H, W): top, left, height, width. Of a large image to within
    1/512 of its sides."""
    step = max(1, max(free.shape) // 512)
    h, w = (n // step for n in free.shape)
    free = free[:h * step, :w * step].reshape(h, step, w, step).all((1, 3))
    # of the columns of True that end in a row; the last is a sentinel
    best, heights = (0, 0, 0, 0), np.zeros(w + 1, int)
    for row, line in enumerate(free):
        heights[:-1] = (heights[:-1] + 1) * line
        # (first column, height) of rectangles that are still open
        rising: list[tuple[int, int]] = []
        for column, height in enumerate(heights):
            start = column
            while rising and rising[-1][1] >= height:
                start, tall = rising.pop()
                if tall * (column - start) > best[2] * best[3]:
                    best = row - tall + 1, start, int(tall), column - start
            rising.append((start, height))
    return tuple(step * n for n in best)
