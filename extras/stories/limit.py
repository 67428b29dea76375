"""
The limit of synthetic stories: how well they can be predicted at best.

A perfect model needs -log2 P bits for a story of probability P. A choice of probability p costs
-log2 p bits, and the bits of the choices that made a story add up to those of the story. Two things make
the sum a little too high, so it bounds P from below and the entropy from above: several choices may give
the same text, and names that were rejected leave their probability to the others (0.25 bits per name).

Not every choice shows in the story: of "[a [big|small] tear|nothing]" both are made, and "nothing" hides
the first. So a choice leaves a mark after its text, a character that Unicode keeps for private use, and
those that are in the finished story count, each once. tell() removes the marks.
"""

import math
import random
import re

FIRST_MARK = 0xF0000
MARK = re.compile("[\U000f0000-\U000fffff]")


def mark(p: float, s: dict) -> str:
    """The mark of a choice of probability p in the story whose memory is `s`."""
    s["bits"].append(-math.log2(p))
    return chr(FIRST_MARK + len(s["bits"]) - 1)


def choose(options: list[str], s: dict, rng: random.Random) -> str:
    """One of the options, and its mark."""
    option = rng.choice(options)
    return option + mark(options.count(option) / len(options), s)


def sum_of_bits(text: str, s: dict) -> float:
    """The bits of the choices that show in a text which still has its marks."""
    return sum(s["bits"][ord(m) - FIRST_MARK] for m in set(MARK.findall(text)))
