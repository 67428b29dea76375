"""
How much of a text is copied: the longest piece of it, in words, that stands in one of many other texts.

extras/story_check.py asks this of a model's stories and those that it was trained on.

A piece of n words is there only if one of n - 1 is, so the length is found by bisection: a hash of each
window of n words in all texts, and whether one of the story's is among them. A million windows take 0.1 s.
"""

import numpy as np


def longest_copies(texts, training_texts):
    """For each text the length, in words, of its longest piece that stands in one of the training texts."""
    numbers = {}

    def to_numbers(text):
        return np.array([numbers.setdefault(word, len(numbers)) for word in text.split()], np.int64)

    rows = [to_numbers(text) for text in texts]
    training = np.concatenate([np.append(to_numbers(text), -1) for text in training_texts])  # -1: no word
    low = np.zeros(len(rows), int)  # a piece of so many words is there
    high = np.array([len(row) for row in rows])  # and none of more than so many
    while (low < high).any():
        first = (low < high).argmax()
        size = (low[first] + high[first] + 1) // 2
        there = np.sort(hash_windows(training, size))
        for i in np.flatnonzero((low < size) & (size <= high)):
            hashes = hash_windows(rows[i], size)
            nearest = there[np.searchsorted(there, hashes).clip(max=len(there) - 1)]
            if (nearest == hashes).any():
                low[i] = size
            else:
                high[i] = size - 1
    return low.tolist()


def hash_windows(numbers, size):
    """
    Of each window of `size` numbers a hash of 64 bits: sum of value * BASE^place, in arithmetic modulo 2^64,
    from the differences of the sums up to each place.
    """
    base = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse
    inverse = np.uint64(pow(int(base), -1, 2**64))
    values = (numbers.astype(np.uint64) + np.uint64(2)) * np.uint64(0xD1B54A32D192ED03)
    values ^= values >> np.uint64(29)
    powers = np.cumprod(np.full(len(numbers), base, np.uint64))
    back = np.cumprod(np.full(len(numbers), inverse, np.uint64))
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(values * powers)))
    return (sums[size:] - sums[:-size]) * back[: len(numbers) - size + 1]
