"""
Made-up English names, of every kind that people may type: a model copies only what it has had to copy.

Syllables (onset, vowel, middle, ending, as in Sh-o-gg-oth), any letters, pieces of English words, an echo, a
thing; and of them words as people write them: Golem, golem, Komodo dragon, Spider-Man, R2-D2.
"""

import random
import re
import string

from extras.stories import english
from extras.stories.limit import MARK, choose, mark


def syllables(s: dict, rng: random.Random) -> str:
    """Brindlewump. No name can be put together in two ways."""
    if rng.random() < 0.9:
        marked = choose(english.ONSETS, s, rng) + mark(0.9, s)
    else:
        marked = mark(0.1, s)
    middles = rng.choice((0, 1, 1, 1, 1, 2))
    marked += mark(4 / 6 if middles == 1 else 1 / 6, s)
    for _ in range(middles):
        marked += choose(english.VOWELS, s, rng) + choose(english.MIDDLES, s, rng)
    return marked + choose(english.ENDINGS, s, rng)


def letters(s: dict, rng: random.Random) -> str:
    """Kuzoviy: any letters, but no three consonants or vowels in a row."""
    name = ""
    marks = ""
    for _ in range(rng.choice(range(4, 12))):
        vowels = [c in "aeiouy" for c in name[-2:]]
        if len(vowels) == 2 and vowels[0] == vowels[1]:
            pool = "bcdfghjklmnpqrstvwxz" if vowels[0] else "aeiouy"
        else:
            pool = "abcdefghijklmnopqrstuvwxyz" + "aeiou" * 3
        letter = rng.choice(pool)
        name += letter
        marks += mark(pool.count(letter) / len(pool), s)
    return name + marks + mark(1 / 8, s)


def pieces(s: dict, rng: random.Random) -> str:
    """Normaliver: pieces of words."""
    number = rng.choice((1, 2, 3))
    inner = "".join(choose(english.PIECES, s, rng) for _ in range(number))
    return choose(english.STARTS, s, rng) + inner + mark(1 / 3, s)


def echo(s: dict, rng: random.Random) -> str:
    """Trabombombo: syllables, one of which is said again."""
    first = choose(english.ONSETS, s, rng) + choose(english.VOWELS, s, rng) if rng.random() < 0.5 else ""
    syllable = choose(english.ONSETS, s, rng) + choose(english.VOWELS, s, rng)
    again = rng.choice((1, 2, 3))
    end = choose(english.ENDINGS, s, rng) if rng.random() < 0.5 else ""
    marks = mark(0.5, s) + mark(1 / 3, s) + mark(0.5, s)
    return first + syllable + MARK.sub("", syllable) * again + end + marks


def thing(s: dict, rng: random.Random) -> str:
    return choose(english.THINGS, s, rng)


WAYS = [syllables] * 3 + [letters] * 4 + [pieces] * 6 + [echo] * 2 + [thing]
ACCENTS = {"a": "áàâäãå", "e": "éèêë", "i": "íï", "o": "óôöø", "u": "úü", "n": "ñ", "c": "ç"}


def accented(marked: str, s: dict, rng: random.Random) -> str:
    """Zoë, Björn, Pokémon: in one name of twenty, one letter gets an accent."""
    places = [(i, accent) for i, letter in enumerate(marked) for accent in ACCENTS.get(letter, "")]
    if not places or rng.random() < 0.95:
        return marked + mark(0.95 if places else 1, s)
    i, accent = rng.choice(places)
    return marked[:i] + accent + marked[i + 1 :] + mark(0.05 / len(places), s)


def made_up_name(s: dict, rng: random.Random) -> str:
    """A name and its marks. Prompts that are tried with a model hold none of them."""
    while True:
        way = rng.choice(WAYS)
        marked = way(s, rng) + mark(WAYS.count(way) / len(WAYS), s)
        name = MARK.sub("", marked).capitalize()
        fits = 3 <= len(name) <= 12 and re.search("[aeiouy]", name.lower())
        tried = {name, name.lower()} & {*english.TRIED}
        if fits and not tried and not english.UNWANTED.search(name.lower()):
            return accented(name + "".join(MARK.findall(marked)), s, rng)


FORMS = ["Golem"] * 24 + ["golem"] * 4 + ["Peppa Pig", "washing machine", "sea monster", "R2-D2"] * 2
FORMS += ["Komodo dragon", "polar bear", "Spider-Man", "were-wolf"]
CODES = ["AAA", "AA", "A9", "A9-A9", "A-9AA"]
CHARACTERS = {"A": list(string.ascii_uppercase), "9": list(string.digits), "-": ["-"]}
NOUNS = [noun for slot in ("treasure", "landmark", "food") for noun in english.WORDS[slot].split()]
ANIMALS = [animal for slot in ("large", "forest") for animal in english.WORDS[slot].split()]


def creature(s: dict, rng: random.Random) -> str:
    """A creature's word in one of the forms that people type, and its marks."""
    name = made_up_name(s, rng)
    while True:
        form = rng.choice(FORMS)
        if form == "R2-D2":
            code = choose(CODES, s, rng)
            marked = "".join(choose(CHARACTERS[c], s, rng) for c in code[:-1]) + code[-1]
        elif form == "sea monster":
            marked = choose(NOUNS, s, rng) + " " + name
        elif form in ("Komodo dragon", "polar bear"):
            marked = name + " " + choose(ANIMALS, s, rng)
        elif form in ("Golem", "golem"):
            marked = name
        else:
            marked = name + ("-" if "-" in form else " ") + made_up_name(s, rng)
        if not english.UNWANTED.search(MARK.sub("", marked).lower()):
            marked = marked.lower() if form[0].islower() else marked
            return marked + mark(FORMS.count(form) / len(FORMS), s)
