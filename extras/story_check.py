"""
Do the stories of a model hold together? Counted by a program that knows the grammar's words.

    python -m extras.story_check --checkpoint=output/ckpt.pt --num_stories=64
    python -m extras.story_check --input_path=stories.json        a list of {"story": text}

Reads  a checkpoint, which writes stories about four heroes, two of whom are in no training story, and four
       creatures, none of which is; or stories from a file
       data/TinyStories_all_data, where it is, for the longest piece that is copied from there
Prints a table: for each property the share of the stories that have it, of those to which it applies

    ended by itself         the end came before max_new_tokens; in a file: the last sentence is complete
    hero keeps the name     no second name of a boy or a girl, nor another word in its place
    creature's word kept    the made-up word for the creature is the same, letter by letter, at each mention
    own name kept           and so is the name that it or a toy has
    pronouns fit the hero   she for Lily, he for Tom; the creature is "it"
    thing keeps its kind    the food that is shared, the toy that was taken, the toy animal that was lost
    colour and size stay    of all that has a colour, or a size, more than once
    help fits the trouble   against the dark a lamp is lit, and who is to jump rope does not whistle
    every word is one       no word that neither the grammar has, nor begins with a capital, as names do
    a typed word is kept    "met a Pikachu in the garden": for each of the words of TRIED, which are in no
                            training story either, how many of the stories of the four heroes keep it

Stories in Chinese are asked the same, by stories/chinese_check.py, and whether the creature's tail or ears
stay.

The loss says how well the next token is predicted, on average over all tokens. Most tokens are easy: a story
may change its hero at a cost that the average hardly shows. On the grammar's own stories each property holds
in at least 99.5 % (tests/test_story_check.py).
"""

import collections
import difflib
import glob
import itertools
import os
import re
import statistics
import sys

import numpy as np
import torch

from configurator import InputError, override
from extras.stories import chinese_check, english
from extras.stories.english import KINS, PLOTS, PRONOUNS
from extras.stories.names import ANIMALS
from extras.synthetic_stories import ENGLISH, WORDS, of_one_row, tidy
from sample import TextGenerator
from tinystories import STORIES, read_texts

checkpoint = "output/ckpt.pt"  # whose stories
input_path = ""  # or a .json of stories, a list of {"story": text}
num_stories = 64  # how many a checkpoint writes, rounded up to a multiple of the 16 prompts
max_new_tokens = 400  # at most, for each
temperature = 0.8  # of the sampler
top_p = 0.95  # of the sampler
data_dir = "data"  # the folder of the training stories' folder
seed = 1337  # at least 0, below 4e9: of the sampler

HEROES = english.TRIED_HEROES
CREATURES = ("Shoggoth", "Brindlewump", "Mizzlefrock", "Quandooster")
MEETING = "One day, {hero} met a {creature}"
PLACE = " in the garden."
TRIED = english.TRIED

# --------------------------------------------------------------------------------------------------------
# The grammar's words.

SEXES = {name: sex for sex, names in english.HEROES.items() for name in names}
PRONOUN_SEXES = {word: sex for sex in ("boy", "girl") for word in (sex, *PRONOUNS[sex])}
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")  # don't, Lily's


def words_of_grammar():
    """All words that stand in a template or in a list, in lower case."""
    texts = [text for plot in PLOTS.values() for text in plot.values()] + list(PLOTS) + [*SEXES, "an"]
    of_names = ("hero_name", "first", "inner", "last", "short")
    texts += [entry for slot, entries in WORDS.items() if slot not in of_names for entry in entries]
    texts += [word for words in PRONOUNS.values() for word in words] + [*KINS, "boy", "girl"]
    return {w.lower() for text in texts for w in WORD.findall(re.sub(r"\{\w+\}", " ", text))}


KNOWN = words_of_grammar()


def is_unknown(word):
    """Whether a word is neither one of the grammar's nor a hero's name."""
    base = word.removesuffix("'s").lower()
    return base not in KNOWN and base.removesuffix("s") not in KNOWN


# --------------------------------------------------------------------------------------------------------
# Names. Which of a story's made-up words is which follows from where each comes first.

BEFORE_KIND = re.compile(
    r"\b(?:an?|the|other|poor|little|big|baby|bravest)\s(?:[a-z]+\s)?$", re.IGNORECASE
)  # a Wump, the little Wump
BEFORE_OWN_NAME = re.compile(r"\b(?:named|called)\s$")


def mentions(text):
    """
    The made-up words of a text, without "'s", and the text before each: [(word, before)]. They begin with a
    capital; but where the first that follows "a" or "the" is small, and comes again, small ones count, too.
    """
    found = [(m[0].removesuffix("'s"), text[: m.start()]) for m in WORD.finditer(text) if is_unknown(m[0])]
    counts = collections.Counter(word for word, _ in found)
    kind = first_after(BEFORE_KIND, [m for m in found if m[0][0].isupper() or counts[m[0]] > 2])
    small = bool(kind) and kind[0].islower()
    return [(word, before) for word, before in found if small or word[0].isupper()]


def first_after(pattern, found):
    return next((word for word, before in found if pattern.search(before)), None)


def check_names(text):
    """{"kind": whether the creature's word is kept, "own": its own name, "hero"}: those that there are."""
    found = mentions(text)
    names = {
        "kind": first_after(BEFORE_KIND, found),
        "own": first_after(BEFORE_OWN_NAME, [m for m in found if not BEFORE_KIND.search(m[1])]),
    }
    names = {role: name for role, name in names.items() if name}
    kept = dict.fromkeys(names, True)
    heroes = {word for word in WORD.findall(text.replace("'s", "")) if word in SEXES}
    if heroes:
        kept["hero"] = len(heroes) == 1
    for word, before in found:
        if BEFORE_KIND.search(before):
            expected = "kind"
        elif BEFORE_OWN_NAME.search(before):
            expected = "own"
        elif word.removesuffix("s") in names.values() or word in names.values():
            continue  # the creature may be spoken to by its word or by its name
        else:  # what is spoken to is called by its own name, if it has one
            likeness = difflib.SequenceMatcher(None, names.get("kind", ""), word).ratio()
            expected = "own" if "own" in names and likeness < 0.6 else "kind"
            if likeness < 0.2 and "own" not in names:
                expected = "hero"
        if expected in kept and names.get(expected) not in (word, word.removesuffix("s")):
            kept[expected] = False
    return kept


ADJECTIVE = f"(?:(?:{'|'.join(WORDS['nature'])}) )?"
KIND = re.compile(rf"\b(?:a baby|baby|an?) {ADJECTIVE}(\w+(?:-\w+)*)( \w+)?")


def with_one_word(text):
    """A story whose creature is a Komodo dragon or an R2-D2: a word of letters stands for it."""
    for first, second in KIND.findall(text):
        word = second[1:]
        if is_unknown(first):
            pair = word in ANIMALS or word[:1].isupper() or (word and is_unknown(word))
        else:  # a muffin golem, but no shiny Golem
            pair = word.islower() and is_unknown(word)
        kind = first + second if pair else first
        if (pair or not first.isalpha()) and text.count(kind) > 1:
            return text.replace(kind, CREATURES[0] if first[0].isupper() else CREATURES[0].lower())
    return text


FIRST_HERO = re.compile(
    r"(?:^|\b(?:day|morning|afternoon), |\b(?:boy|girl) named )([A-Z][^\W\d_]+)(?: met| was| found|\.)"
)


def with_known_hero(text):
    """A story whose hero has a name of the grammar's: one that is put together may be any word."""
    match = FIRST_HERO.search(text)
    if not match or not is_unknown(match[1]):
        return text
    words = (word.lower() for word in WORD.findall(text))
    sex = next((PRONOUN_SEXES[word] for word in words if word in PRONOUN_SEXES), "girl")
    name = next(name for name in english.HEROES[sex] if name not in text)
    return re.sub(rf"\b{match[1]}\b", name, text)


# --------------------------------------------------------------------------------------------------------
# Pronouns, things, words, the end.


def check_pronouns(text):
    """Whether each he, her, girl, ... fits the hero's name: creatures are "it". None: there is no hero."""
    words = [word.removesuffix("'s") for word in WORD.findall(text)]
    hero = next((SEXES[word] for word in words if word in SEXES), None)
    sexes = {PRONOUN_SEXES[word.lower()] for word in words if word.lower() in PRONOUN_SEXES}
    return sexes <= {hero} if hero else None


THINGS = [  # what stands for a thing that is shared, taken or lost; all matches in a story are one word
    re.compile(rf"\b({'|'.join(WORDS['food'])})\b"),
    re.compile(rf"\b(?:{'|'.join(WORDS['colour'])}|my|a) ({'|'.join(WORDS['toy'])})\b"),
    re.compile(rf"\btoy ({'|'.join(WORDS['plush'])})\b"),
    re.compile(r"\bflag (?:is |hangs )?over the (\w+)"),
]


def check_things(text):
    """Whether each thing is of one kind; None: there is none. Toys count where one was taken."""
    toys_count = re.search(r"\bbehind (?:your|his|her|its) back\b", text)
    found = [set(pattern.findall(text)) for pattern in THINGS if pattern is not THINGS[1] or toys_count]
    return all(len(kinds) <= 1 for kinds in found) if any(found) else None


ATTRIBUTES = [  # what the story says of a thing, before the thing
    re.compile(rf"\b({'|'.join(WORDS['colour'])}) (?:toy )?([a-z]+)"),
    re.compile(rf"\b({'|'.join(WORDS['size'])}) (?:(?:{'|'.join(WORDS['colour'])}) )?([A-Za-z]+)"),
]


def check_attributes(text):
    """Whether a thing that has a colour, or a size, twice has the same twice; None: there is none."""
    verdict = None
    for pattern in ATTRIBUTES:
        found = collections.defaultdict(list)
        for attribute, thing in pattern.findall(text):
            found[thing].append(attribute)
        for attributes in found.values():
            if len(attributes) > 1:
                verdict = verdict is not False and len(set(attributes)) == 1
    return verdict


def unknown_words(text):
    """Words in small letters that the grammar does not have, but for the creature's."""
    text = with_one_word(text)
    kind = first_after(BEFORE_KIND, mentions(text))
    words = [word.removesuffix("'s") for word in WORD.findall(text) if word[0].islower()]
    return [word for word in words if word not in KNOWN and word not in (kind, f"{kind}s")]


def check_story(text, ended=None):
    """{property: True, False, or None where it does not apply}; ended: None judges by the last sentence."""
    text = with_one_word(with_known_hero(text))
    kept = check_names(text)
    complete = re.search(r'[.!?]"?$', text) and text.count('"') % 2 == 0
    return {
        "ended by itself": bool(complete) if ended is None else ended,
        "hero keeps the name": kept.get("hero"),
        "creature's word kept": kept.get("kind"),
        "own name kept": kept.get("own"),
        "pronouns fit the hero": check_pronouns(text),
        "thing keeps its kind": check_things(text),
        "colour and size stay": check_attributes(text),
        "help fits the trouble": of_one_row(" ".join(text.split()), ENGLISH, 12),
        "every word is one": not unknown_words(text),
    }


# --------------------------------------------------------------------------------------------------------
# How much of a story is copied.

HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: 2^64 divided by the golden ratio


def longest_copies(texts, training_texts):
    """
    For each text the length, in words, of its longest piece that is in one of the training texts. A piece of
    n words is in both only if its first n - 1 are: all places where a common piece begins are kept, and the
    pieces grow by one word in each round. They are compared by hashes of 64 bits.
    """
    numbers = collections.defaultdict(itertools.count().__next__)  # of each word
    words = []
    for i, text in enumerate([*texts, *training_texts]):
        words += [numbers[word] for word in text.split()]
        words.append(-1 - i)  # like nothing else, so that no common piece has it
    words = np.array(words)
    text_index = np.cumsum(words < 0)
    starts = np.arange(len(words))
    hashes = np.zeros(len(words), np.uint64)
    longest = np.zeros(len(texts), int)
    for size in itertools.count(1):
        hashes = (hashes + words[starts + size - 1].astype(np.uint64)) * HASH_FACTOR
        hashes ^= hashes >> np.uint64(29)
        ours = text_index[starts] < len(texts)
        in_both = np.isin(hashes, np.intersect1d(hashes[ours], hashes[~ours]))
        if not in_both.any():
            return longest.tolist()
        longest[text_index[starts[in_both & ours]]] = size
        starts = starts[in_both]
        hashes = hashes[in_both]


# --------------------------------------------------------------------------------------------------------
# The stories of a model, and the table.


def write_stories(writer, prompts):
    """[(text, whether it ended by itself)], one for each prompt."""
    prompts = [writer.encode(prompt) for prompt in prompts]
    options = (max_new_tokens, temperature, None, top_p, writer.stop_ids, writer.generator)
    stories = {}
    for length in {len(ids) for ids in prompts}:  # those of one length are one batch
        chosen = [i for i, ids in enumerate(prompts) if len(ids) == length]
        idx = torch.tensor([prompts[i] for i in chosen], device=writer.device)
        rows = writer.model.generate(idx, *options).tolist()
        stories |= zip(chosen, ((writer.tokenizer.decode(ids), ids[-1] in writer.stop_ids) for ids in rows))
    return [stories[i] for i in range(len(prompts))]


def print_words(writer, checks):
    """How many of the stories about a word that a person typed keep it."""
    pairs = list(itertools.product(checks.HEROES, checks.TRIED))
    prompts = [checks.MEETING.format(hero=hero, creature=word) + checks.PLACE for hero, word in pairs]
    texts = [text for text, _ in write_stories(writer, [tidy(prompt) for prompt in prompts])]
    kept = collections.Counter(word for (_, word), text in zip(pairs, texts) if checks.is_about(text, word))
    print(f"    {'a typed word is kept':<24}{kept.total() / len(pairs):7.1%}  of {len(pairs)}")
    number = len(checks.HEROES)
    lost = [f"{word} ({kept[word]} of {number})" for word in checks.TRIED if kept[word] < number]
    print(f"    not always kept, of {len(checks.TRIED)} words: {', '.join(lost) or 'none'}")


def is_about(text, word):
    """Whether the creature of a story is this word, and stays so. Any word: the grammar may have it, too."""
    stranger = CREATURES[0] if word[0].isupper() else CREATURES[0].lower()
    text = re.sub(rf"\b{re.escape(word)}(?=s?\b)", stranger, with_known_hero(text))
    is_kind = first_after(BEFORE_KIND, mentions(text)) == stranger
    return is_kind and check_names(text)["kind"] and text.count(stranger) > 2


def print_table(stories, checks):
    print(f"{len(stories)} stories")
    verdicts = [checks.check_story(text, ended) for text, ended in stories]
    for name in verdicts[0]:
        applies = [verdict[name] for verdict in verdicts if verdict[name] is not None]
        share = f"{sum(applies) / len(applies):7.1%}  of {len(applies)}" if applies else "      -"
        print(f"    {name:<24}{share}")
    odd = sorted({word for text, _ in stories for word in checks.unknown_words(text)})
    if odd:
        print(f"    words that are none: {', '.join(odd[:12])}{', ...' if len(odd) > 12 else ''}")


def print_copies(stories, chinese):
    files = sorted(glob.glob(f"{glob.escape(data_dir)}/{STORIES}/data*.json"))
    if not files:
        print(f"    longest copied piece: not known, there are no stories in {data_dir}/{STORIES}")
        return
    unit = "clauses" if chinese else "words"
    spaced = (lambda text: re.sub("(?<=[，。！？：])", " ", text)) if chinese else str  # a clause is a word
    training = [spaced(text) for path in files[1:] for text in read_texts(path) if text]
    others = [spaced(text) for text in read_texts(files[0]) if text][: len(stories)]
    ours = longest_copies([spaced(text) for text, _ in stories], training)
    theirs = longest_copies(others, training)
    for name, words in (("these stories", ours), (f"{len(others)} validation stories", theirs)):
        numbers = f"{statistics.median(words):.0f} {unit} (median), {max(words)} (longest)"
        print(f"    longest piece copied from training stories, in {name}: {numbers}")


def main():
    if num_stories < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise InputError(
            "num_stories and max_new_tokens are at least 1, temperature at least 0, "
            "top_p is above 0 and at most 1"
        )
    if input_path:
        if not os.path.isfile(input_path):
            raise InputError(f"no file {input_path}")
        stories = [(text, None) for text in read_texts(input_path) if text]
        if not stories:
            raise InputError(f"{input_path} has no story")
        chinese = "的" in stories[0][0]
    else:
        writer = TextGenerator(checkpoint, seed=seed)
        chinese = len(writer.tokenizer.encode("的")) < 3  # no three bytes
    checks = chinese_check if chinese else sys.modules[__name__]
    if not input_path:
        pairs = itertools.product(checks.HEROES, checks.CREATURES)
        prompts = [checks.MEETING.format(hero=hero, creature=creature) for hero, creature in pairs]
        stories = write_stories(writer, prompts * -(-num_stories // len(prompts)))
    print_table(stories, checks)
    if not input_path:
        print_words(writer, checks)
    print_copies(stories, chinese)


if __name__ == "__main__":
    override(globals())
    main()
