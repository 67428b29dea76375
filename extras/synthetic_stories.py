"""
Write made-up children's stories from a seeded grammar, for a machine that cannot download TinyStories.

    python -m extras.synthetic_stories         # print three stories
    python -m extras.synthetic_stories 7       # with another seed
    python -m extras.synthetic_stories 7 zh    # in Chinese: see extras/stories/

tinystories.py synthesize calls write_stories(), which fills a folder with files in the format of the real
data. The same (seed, shards, megabytes) gives the same files on every machine.

Each story follows one of ten plots. Its characters keep their name, sex and belongings, because whatever
a story has picked is remembered in one dict. Every story has a creature, a pet or a toy whose name is put
together from syllables, letters or pieces of words, and seldom comes twice; so are the names of two heroes
in five. Three creatures in ten are a Komodo dragon, a Spider-Man or an R2-D2. Such names cannot be learned by
heart: to write "the Brindlewump" again, a model must learn to look back and copy. That is what lets it
continue the prompt "One day, Lily met a Shoggoth" about the Shoggoth, a word that no story has, and about
Priya instead of Lily.

All that is random in a story is a choice whose probability is known. So we know, too, how well the stories
can be predicted at best: see the limit, below.

This is no substitute for TinyStories, which has far more plots, words and turns. A model trained on this
learns these plots, reaches a very low loss, and can tell nothing else.
"""

import functools
import itertools
import math
import random
import re
import string
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from configurator import write_json
from extras.stories import chinese, english

# --------------------------------------------------------------------------------------------------------
# The limit. A perfect model needs -log2 P bits for a story of probability P. A choice of probability p costs
# -log2 p bits, and the bits of the choices that made a story add up to those of the story. Two things make
# the sum a little too high, so it bounds P from below and the entropy from above: several choices may give
# the same text, and names that were rejected leave their probability to the others (0.28 bits per name).
#
# Not every choice shows in the story: of "[a [big|small] tear|nothing]" both are made, and "nothing" hides
# the first. So a choice leaves a mark after its text, a character that Unicode keeps for private use, and
# those that are in the finished story count, each once. tell() removes the marks.

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


# --------------------------------------------------------------------------------------------------------
# Made-up names, of every kind that people may type: a model copies only what it has had to copy. Syllables
# (onset, vowel, middle, ending, as in Sh-o-gg-oth), any letters, pieces of English words, an echo, a thing;
# and of them words as people write them: Golem, golem, Komodo dragon, Spider-Man.


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


# --------------------------------------------------------------------------------------------------------
# From a template to text, and who is in it.


def phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split("/")]


def entries(words: dict[str, str]) -> dict[str, list[str]]:
    return {slot: phrases(text) if "/" in text else text.split() for slot, text in words.items()}


def tables(plot: dict[str, str]) -> list[tuple[list[str], list[list[str]]]]:
    """[(slots, rows)] of a plot: what the slots of a row have fits together."""
    found = []
    for table in filter(None, plot.get("together", "").split("¶")):
        slots, *rows = [row.split(": ") for row in phrases(table)]
        found.append((slots, rows))
    return found


WORDS = entries(english.WORDS)
FORMS = ["Golem"] * 24 + ["golem"] * 4 + ["Peppa Pig", "washing machine", "sea monster", "R2-D2"] * 2
FORMS += ["Komodo dragon", "polar bear", "Spider-Man", "were-wolf"]
CODES = ["AAA", "AA", "A9", "A9-A9", "A-9AA"]
NOUNS = WORDS["treasure"] + WORDS["landmark"] + WORDS["food"]
ANIMALS = WORDS["large"] + WORDS["forest"]


def as_people_write(name: str, s: dict, rng: random.Random) -> str:
    """A creature's word in one of the forms that people type, and its marks."""
    form = rng.choice(FORMS)
    marked = name
    if form == "R2-D2":
        characters = {"A": string.ascii_uppercase, "9": string.digits, "-": "-"}
        code = choose(CODES, s, rng)
        marked = "".join(choose(list(characters[c]), s, rng) for c in code[:-1]) + code[-1]
    elif form == "sea monster":
        marked = choose(NOUNS, s, rng) + " " + name
    elif form in ("Komodo dragon", "polar bear"):
        marked = name + " " + choose(ANIMALS, s, rng)
    elif form not in ("Golem", "golem"):
        marked = name + ("-" if "-" in form else " ") + made_up_name(s, rng)
    if english.UNWANTED.search(MARK.sub("", marked).lower()):
        return as_people_write(name, s, rng)
    marked = marked.lower() if form[0].islower() else marked
    return marked + mark(FORMS.count(form) / len(FORMS), s)


def expand(text: str, s: dict, rng: random.Random) -> str:
    """
    "[Hi|Hello], {hero}" -> "Hello, Lily". Choices are made first, the innermost first; then slots are
    filled.

    A slot that is not in the story's memory `s` is drawn from the language's words and stays: the red kite
    that is lost is the red kite that is found. {toy2} is another toy than {toy}; {He} is {he} with a capital.
    """
    while "[" in text:
        text = re.sub(r"\[([^][]*)\]", lambda match: choose(match[1].split("|"), s, rng), text)

    def fill(match: re.Match) -> str:
        slot = match[1][0].lower() + match[1][1:]
        if slot not in s:
            words = s["words"][slot.rstrip("234")]
            entry = rng.choice(words)
            while entry in s["taken"]:
                entry = rng.choice(words)
            free = [other for other in words if other not in s["taken"]]
            s[slot] = entry + mark(free.count(entry) / len(free), s)
            s["taken"].add(entry)
        s[slot] = value = expand(s[slot], s, rng) if "{" in s[slot] or "[" in s[slot] else s[slot]
        return value if slot == match[1] else value[:1].upper() + value[1:]

    return re.sub(r"\{(\w+)\}", fill, text)


def from_slot(slot: str, words: dict, s: dict, rng: random.Random) -> str:
    """What a slot of a language's words gives, and its marks; the story's memory knows nothing of it."""
    return expand("{" + slot + "}", {"bits": s["bits"], "taken": set(), "words": words}, rng)


def chinese_name(s: dict, rng: random.Random) -> str:
    """A name and its marks: one of stories/chinese.py's templates for a name, filled with characters."""
    while True:
        marked = from_slot("name", CHINESE.words, s, rng)
        if not chinese.UNWANTED.search(MARK.sub("", marked)):
            return marked


class Language(NamedTuple):
    """What differs between the languages."""

    words: dict[str, list[str]]  # the lexicon
    plots: dict[str, dict[str, str]]
    heroes: dict[str, list[str]]  # of each sex
    sexes: dict[str, str]  # the word for each
    pronouns: dict[str, tuple[str, ...]]
    kins: tuple[str, ...]
    is_hero: Callable[[str], bool]  # whether a made-up name may be a hero's
    make_name: Callable[[dict, random.Random], str]
    named: str  # what tells the name that one creature in five has; "": none has one
    space: str  # between words


ENGLISH = Language(
    WORDS, english.PLOTS, english.HEROES, {"girl": "girl", "boy": "boy"}, english.PRONOUNS, english.KINS,
    english.is_hero, made_up_name, named=" named {cname}", space=" ",
)  # fmt: skip
CHINESE = Language(
    entries(chinese.WORDS), chinese.PLOTS, chinese.HEROES, {"girl": "女孩", "boy": "男孩"}, chinese.PRONOUNS,
    chinese.KINS, chinese.is_hero, chinese_name, named="", space="",
)  # fmt: skip
LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


def hero_name(sex: str, language: Language, s: dict, rng: random.Random) -> str:
    """A name that many stories have, or one that seldom comes twice, as a visitor's. And its marks."""
    if rng.random() < 0.6:
        return choose(language.heroes[sex], s, rng) + mark(0.6, s)
    while True:
        marked = from_slot("hero_name", language.words, s, rng)
        name = MARK.sub("", marked)
        others = MARK.sub("", s["kind"] + s["cname"])
        if language.is_hero(name) and name not in others:
            marked = accented(marked, s, rng) if language is ENGLISH else marked
            return marked + mark(0.4, s)


def cast(rng: random.Random, language: Language = ENGLISH) -> dict:
    """Who is in a story: {hero} {he} {his}, {his} {kin}, and a {kind}, spoken to as {call}."""
    s = {"bits": [], "taken": set(), "words": language.words}
    sex = rng.choice(("boy", "girl"))
    sex_mark = mark(1 / 2, s)
    s["boy"] = language.sexes[sex] + sex_mark
    s["kin"] = choose(language.kins, s, rng)
    s["kind"] = language.make_name(s, rng)
    if language is ENGLISH:
        s["kind"] = as_people_write(s["kind"], s, rng)
    s["cname"] = language.make_name(s, rng)
    s["hero"] = hero_name(sex, language, s, rng) + sex_mark
    for slot, word in zip(("he", "him", "his"), language.pronouns[sex]):
        s[slot] = word + sex_mark
    if language.named and rng.random() < 0.2:  # this creature has a name of its own, by which it is spoken to
        s["named"] = language.named + mark(0.2, s)
        s["call"] = "{cname}"
    else:
        s["named"] = mark(0.8, s) if language.named else ""
        s["call"] = "{kind}"
    return s


# --------------------------------------------------------------------------------------------------------
# Stories and shards.


def tidy(text: str, space: str = " ") -> str:
    """Single spaces, or none in Chinese, and "a owl" -> "an owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!uni)", r"\1n ", space.join(text.split()))


def compose(rng: random.Random, language: Language = ENGLISH) -> tuple[str, str, dict]:
    """The template of a summary, a story that still has its marks, and the story's memory."""
    s = cast(rng, language)
    summary = rng.choice(list(language.plots))
    plot = language.plots[summary]
    marks = mark(1 / len(language.plots), s)
    s["trouble"] = plot.get("trouble", "")
    for slots, rows in tables(plot):
        s.update(zip(slots, rng.choice(rows)))
        marks += mark(1 / len(rows), s)
    # Like the real ones, some have no paragraphs.
    break_ = choose(("\n\n", "\n\n", "\n", language.space), s, rng)
    return summary, expand(plot["story"], s, rng).replace("¶", f"¶{break_}¶") + marks, s


def of_one_row(text: str, language: Language, least: int) -> bool | None:
    """
    Whether all that a text has of each table is of one row, as the help that fits the trouble; None: it has
    nothing of any. Phrases of fewer than `least` characters may stand for something else, and do not count.
    """
    told = []
    for _, rows in itertools.chain(*map(tables, language.plots.values())):
        pieces = [[piece.strip() for phrase in row for piece in re.split(r"{\w+}", phrase)] for row in rows]
        told.append([i for i, row in enumerate(pieces) if any(len(p) >= least and p in text for p in row)])
    return max(map(len, told)) < 2 if any(told) else None


def instruction(story: str, rng: random.Random) -> dict:
    """What TinyStories' authors asked for: words, and what the story has."""
    long_words = list(dict.fromkeys(re.findall(r"\b[a-z]{6,}\b", story)))
    words = rng.sample(long_words, min(3, len(long_words)))  # about one story in 60,000 has two
    features = ["Dialogue"] * ('"' in story) + ["MoralValue"] * (" learned that " in story)
    prompt = "Write a short story for a small child. Use the words " + " and ".join(words) + "."
    prompt += " It should teach a lesson." if "MoralValue" in features else ""
    return {"prompt:": prompt, "words": words, "features": features}


def tell(rng: random.Random, language: Language = ENGLISH) -> dict:
    """A story in the format of TinyStories, and its "bits": a perfect model needs at most so many."""
    summary, marked, s = compose(rng, language)
    parts = MARK.sub("", marked).split("¶")  # paragraphs, and breaks, of which tidy() leaves nothing
    story = "".join(tidy(part, language.space) or part for part in parts)
    return {
        "story": story,
        "instruction": instruction(story, rng) if language is ENGLISH else {},
        "summary": tidy(MARK.sub("", expand(summary, s, rng)), language.space),
        "source": "synthetic",
        "bits": round(sum_of_bits(marked, s), 2),
    }


def write_shard(seed: int, index: int, num_bytes: int, language: str = "en") -> list[dict]:
    """The stories of one shard, about num_bytes of text: the last one is the first that reaches num_bytes."""
    rng = random.Random(f"{seed}-{index}")
    stories, size = [], 0
    while size < num_bytes:
        stories.append(tell(rng, LANGUAGES[language]))
        size += len(stories[-1]["story"].encode())
    return stories


def limit_bpb(stories: list[dict]) -> float:
    """The limit of some stories, in bits per byte of their text."""
    return sum(s["bits"] for s in stories) / sum(len(s["story"].encode()) for s in stories)


def write_stories(folder, shards, seed, megabytes, workers, language="en", initializer=None):
    """
    Fill a folder with data00.json, data01.json, ... of equal size, and corpus.json, which says how well the
    stories of data00.json can be predicted. initializer: what each process of the pool calls first.
    """
    num_bytes = int(megabytes * 1e6 / shards)
    write = functools.partial(write_shard, seed, num_bytes=num_bytes, language=language)
    with ProcessPoolExecutor(workers, initializer=initializer) as pool:
        written = tqdm(pool.map(write, range(shards)), "synthesize", shards, unit="shard")
        for i, stories in enumerate(written):
            write_json(f"{folder}/data{i:02}.json", stories)
            if i == 0:
                write_json(f"{folder}/corpus.json", {"limit_bpb": round(limit_bpb(stories), 4)})


if __name__ == "__main__":
    seed, language = (sys.argv[1:] + ["0", "en"][len(sys.argv) - 1 :])[:2]
    rng = random.Random(seed)
    print("\n\n---\n\n".join(tell(rng, LANGUAGES[language])["story"] for _ in range(3)))
