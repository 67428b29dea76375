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
can be predicted at best: see stories/limit.py.

This is no substitute for TinyStories, which has far more plots, words and turns. A model trained on this
learns these plots, reaches a very low loss, and can tell nothing else.
"""

import functools
import itertools
import random
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from configurator import write_json
from extras.stories import chinese, english
from extras.stories.limit import MARK, choose, mark, sum_of_bits
from extras.stories.names import accented, creature, made_up_name

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
    make_kind: Callable[[dict, random.Random], str]  # a creature's word
    make_name: Callable[[dict, random.Random], str]
    spell: Callable[[str, dict, random.Random], str]  # a hero's made-up name, perhaps otherwise
    named: str  # what tells the name that one creature in five has; "": none has one
    space: str  # between words


ENGLISH = Language(
    WORDS, english.PLOTS, english.HEROES, {"girl": "girl", "boy": "boy"}, english.PRONOUNS, english.KINS,
    english.is_hero, creature, made_up_name, accented, named=" named {cname}", space=" ",
)  # fmt: skip
CHINESE = Language(
    entries(chinese.WORDS), chinese.PLOTS, chinese.HEROES, {"girl": "女孩", "boy": "男孩"}, chinese.PRONOUNS,
    chinese.KINS, chinese.is_hero, chinese_name, chinese_name, lambda name, s, rng: name, named="", space="",
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
            return language.spell(marked, s, rng) + mark(0.4, s)


def cast(rng: random.Random, language: Language = ENGLISH) -> dict:
    """Who is in a story: {hero} {he} {his}, {his} {kin}, and a {kind}, spoken to as {call}."""
    s = {"bits": [], "taken": set(), "words": language.words}
    sex = rng.choice(("boy", "girl"))
    sex_mark = mark(1 / 2, s)
    s["boy"] = language.sexes[sex] + sex_mark
    s["kin"] = choose(language.kins, s, rng)
    s["kind"] = language.make_kind(s, rng)
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
