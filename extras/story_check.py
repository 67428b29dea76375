"""
Do the stories of a model hold together? Counted by a program that knows the grammar's words.

    python -m extras.story_check --checkpoint=output/ckpt.pt --num_stories=64
    python -m extras.story_check --input_path=stories.json        a list of {"story": text}

Reads  a checkpoint, which writes stories about four heroes and four creatures that are in no training story;
       or stories from a file
       data/TinyStories_all_data, where it is, for the longest piece that is copied from there
Prints a table: for each property the share of the stories that have it, of those to which it applies

    ended by itself         the end came before max_new_tokens; in a file: the last sentence is complete
    hero keeps the name     no second name of a boy or a girl
    creature's word kept    the made-up word for the creature is the same, letter by letter, at each mention
    own name kept           and so is the name that it or a toy has
    pronouns fit the hero   she for Lily, he for Tom; the creature is "it"
    thing keeps its kind    the food that is shared, the toy that was taken, the toy animal that was lost
    every word is one       no word that neither the grammar has, nor begins with a capital, as names do

The loss says how well the next token is predicted, on average over all tokens. Most tokens are easy: a story
may change its hero at a cost that the average hardly shows. On the grammar's own stories each property holds
in at least 99.5 % (tests/test_story_check.py).
"""

import difflib
import glob
import os
import re
import statistics

import torch

from configurator import InputError, override
from extras.longest_copy import longest_copies
from extras.story_plots import PLOTS
from extras.synthetic_stories import BOYS, GIRLS, KINS, PRONOUNS, WORDS
from tinystories import STORIES, read_texts

checkpoint = "output/ckpt.pt"  # whose stories
input_path = ""  # or a .json of stories, a list of {"story": text}
num_stories = 64  # how many a checkpoint writes, rounded up to a multiple of the 16 prompts
max_new_tokens = 400  # at most, for each
temperature = 0.8  # of the sampler
top_p = 0.95  # of the sampler
data_dir = "data"  # the folder of the training stories' folder
seed = 1337  # of the sampler

HEROES = ("Lily", "Tom", "Mia", "Ben")
CREATURES = ("Shoggoth", "Brindlewump", "Mizzlefrock", "Quandooster")

# --------------------------------------------------------------------------------------------------------
# The grammar's words.

SEXES = {**dict.fromkeys(GIRLS, "girl"), **dict.fromkeys(BOYS, "boy")}  # of each hero's name
PRONOUN_SEXES = {word: sex for sex in ("boy", "girl") for word in (sex, *PRONOUNS[sex])}
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")  # don't, Lily's


def words_of_grammar():
    """All words that stand in a template or in a list, in lower case."""
    texts = [text for plot in PLOTS.values() for text in plot.values()] + list(PLOTS) + [*SEXES, "an"]
    texts += [entry for entries in WORDS.values() for entry in entries]
    texts += [word for words in PRONOUNS.values() for word in words] + [*KINS, "boy", "girl"]
    return {w.lower() for text in texts for w in WORD.findall(re.sub(r"\{\w+\}", " ", text))}


KNOWN = words_of_grammar()


def is_made_up(word):
    """Whether a word begins with a capital, and is neither a word of the grammar's nor a hero's name."""
    base = word.removesuffix("'s").lower()
    return word[0].isupper() and base not in KNOWN and base.removesuffix("s") not in KNOWN


# --------------------------------------------------------------------------------------------------------
# Names. Which of a story's made-up words is which follows from where each comes first.

BEFORE_KIND = re.compile(
    r"\b(?:an?|the|other|poor|little|big|baby|bravest)\s(?:[a-z]+\s)?$", re.IGNORECASE
)  # a Wump, the little Wump
BEFORE_OWN_NAME = re.compile(r"\b(?:named|called)\s$")


def mentions(text):
    """The made-up words of a text, without "'s", and the text before each: [(word, before)]."""
    found = [m for m in WORD.finditer(text) if is_made_up(m[0])]
    return [(m[0].removesuffix("'s"), text[: m.start()]) for m in found]


def first_after(pattern, found):
    return next((word for word, before in found if pattern.search(before)), None)


def check_names(text):
    """{"kind": whether the creature's word is kept, "own": and its own name}; None: there is none."""
    found = mentions(text)
    names = {
        "kind": first_after(BEFORE_KIND, found),
        "own": first_after(BEFORE_OWN_NAME, [m for m in found if not BEFORE_KIND.search(m[1])]),
    }
    names = {role: name for role, name in names.items() if name}
    kept = dict.fromkeys(names, True)
    for word, before in found:
        if BEFORE_KIND.search(before):
            expected = "kind"
        elif BEFORE_OWN_NAME.search(before):
            expected = "own"
        elif word.removesuffix("s") in names.values() or word in names.values():
            continue  # the creature may be spoken to by its word or by its name
        else:  # what is spoken to is called by its own name, if it has one
            expected = "own" if similarity(names.get("kind", ""), word) < 0.6 else "kind"
            expected = expected if expected in names else "kind"
        if expected in names and names[expected] not in (word, word.removesuffix("s")):
            kept[expected] = False
    return {role: kept.get(role) for role in ("kind", "own")}


def similarity(one, other):
    return difflib.SequenceMatcher(None, one, other).ratio()


def check_hero(text):
    """Whether the story has only one name of a boy or girl; None: it has none."""
    heroes = {word for word in WORD.findall(text.replace("'s", "")) if word in SEXES}
    return len(heroes) == 1 if heroes else None


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
]


def check_things(text):
    """Whether each thing is of one kind; None: there is none. Toys count where one was taken."""
    toys_count = re.search(r"\bbehind (?:your|his|her|its) back\b", text)
    found = [set(pattern.findall(text)) for pattern in THINGS if pattern is not THINGS[1] or toys_count]
    return all(len(kinds) <= 1 for kinds in found) if any(found) else None


def unknown_words(text):
    """Words in small letters that the grammar does not have."""
    return [word for word in WORD.findall(text) if word[0].islower() and word.removesuffix("'s") not in KNOWN]


def check_story(text, ended=None):
    """{property: True, False, or None where it does not apply}; ended: None judges by the last sentence."""
    names = check_names(text)
    complete = re.search(r'[.!?]"?$', text) and text.count('"') % 2 == 0
    return {
        "ended": bool(complete) if ended is None else ended,
        "hero": check_hero(text),
        "creature": names["kind"],
        "own_name": names["own"],
        "pronouns": check_pronouns(text),
        "thing": check_things(text),
        "words": not unknown_words(text),
    }


TITLES = {
    "ended": "ended by itself",
    "hero": "hero keeps the name",
    "creature": "creature's word kept",
    "own_name": "own name kept",
    "pronouns": "pronouns fit the hero",
    "thing": "thing keeps its kind",
    "words": "every word is one",
}


def shares(stories):
    """[(text, ended or None)] -> {property: (share of those to which it applies, their number)}."""
    checked = [check_story(text, ended) for text, ended in stories]
    result = {}
    for name in TITLES:
        applies = [row[name] for row in checked if row[name] is not None]
        result[name] = (sum(applies) / max(1, len(applies)), len(applies))
    return result


# --------------------------------------------------------------------------------------------------------
# The stories of a model, and the table.


def write_stories(model, tokenizer, count, seed=1337, max_new_tokens=400, temperature=0.8, top_p=0.95):
    """[(text, whether it ended by itself)], `count` or a few more: each hero meets each creature."""
    device = model.freqs_cos.device
    generator = torch.Generator(device).manual_seed(seed)
    stop_ids = {tokenizer.bos_id, tokenizer.eos_id} - {-1}
    prompts = [f"One day, {hero} met a {creature}" for hero in HEROES for creature in CREATURES]
    prompts = [tokenizer.encode(prompt, bos=True) for prompt in prompts] * -(-count // len(prompts))
    stories = []
    for length in sorted({len(ids) for ids in prompts}):  # those of one length are one batch
        idx = torch.tensor([ids for ids in prompts if len(ids) == length], device=device)
        idx = model.generate(idx, max_new_tokens, temperature, None, top_p, stop_ids, generator)
        stories += [(tokenizer.decode(ids), ids[-1] in stop_ids) for ids in idx.tolist()]
    return stories


def check_model(model, tokenizer, count=64):
    """{"story_hero": share, ...} of stories that the model writes: what train.py --story_check logs."""
    training = model.training
    model.eval()
    found = shares(write_stories(model, tokenizer, count))
    model.train(training)
    return {f"story_{name}": share for name, (share, _) in found.items()}


def print_table(stories):
    print(f"{len(stories)} stories")
    for name, (share, applies) in shares(stories).items():
        print(f"    {TITLES[name]:<24}" + (f"{share:7.1%}  of {applies}" if applies else "      -"))
    odd = sorted({word for text, _ in stories for word in unknown_words(text)})
    if odd:
        print(f"    words that are none: {', '.join(odd[:12])}{', ...' if len(odd) > 12 else ''}")


def print_copies(stories):
    files = sorted(glob.glob(f"{glob.escape(data_dir)}/{STORIES}/data*.json"))
    if not files:
        print(f"    longest copied piece: not known, there are no stories in {data_dir}/{STORIES}")
        return
    training = [text for path in files[1:] for text in read_texts(path) if text]
    others = [text for text in read_texts(files[0]) if text][: len(stories)]
    ours = longest_copies([text for text, _ in stories], training)
    theirs = longest_copies(others, training)
    for name, words in (("these stories", ours), (f"{len(others)} validation stories", theirs)):
        numbers = f"{statistics.median(words):.0f} words (median), {max(words)} (longest)"
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
    else:
        from sample import TextGenerator

        writer = TextGenerator(checkpoint)
        settings = (seed, max_new_tokens, temperature, top_p)
        stories = write_stories(writer.model, writer.tokenizer, num_stories, *settings)
    print_table(stories)
    print_copies(stories)


if __name__ == "__main__":
    override(globals())
    main()
