"""Synthetic stories: their limit, and the program that counts what a model keeps."""

import hashlib
import json
import math
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from configurator import read_json, write_json
from extras import plot, synthetic_stories
from extras.stories import chinese, chinese_check, english
from extras.story_check import SEXES, WORD, check_story, longest_copies, unknown_words
from extras.synthetic_stories import (
    CHINESE,
    MARK,
    WORDS,
    cast,
    chinese_name,
    compose,
    expand,
    made_up_name,
    sum_of_bits,
    tell,
    tidy,
)
from tests.fixtures import HERE, flags, read_rows, run

pytest_plugins = ["tests.fixtures"]


# --- the limit

def test_the_stories_of_a_seed_are_the_same_to_the_byte_for_ever():
    rows = []
    for s in synthetic_stories.write_shard(42, 0, 200_000):
        rows.append([s["story"], s["summary"], s["source"], s["instruction"]["words"]])
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "0585ac065448c82db3485b73add2274ab7125437beb79569ea39d8b9d0a823a6"


TEMPLATES = (
    "[a|b]",
    "[a|a|b|]",
    "[[big|small] tear|nothing|nothing]",  # what is hidden costs nothing
    "{small} and {small2}, {small}",  # the second is another one
    "{weekday}[: {small}|]",
    "{he} and {his} {kin}, {looks}",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_probabilities_of_all_texts_of_a_template_add_up_to_one(template, monkeypatch):
    monkeypatch.setitem(WORDS, "looks", ["{boy}", "[x|y] {weekday}"])
    rng = random.Random(0)
    bits, counts = {}, Counter()
    for _ in range(5_000):
        s = cast(rng)
        marked = expand(template, s, rng)
        text = MARK.sub("", marked)
        counts[text] += 1
        bits.setdefault(text, []).append(sum_of_bits(marked, s))
    assert all(max(b) == pytest.approx(min(b)) for b in bits.values()) or template == "[a|a|b|]"
    assert sum(2 ** -min(b) for b in bits.values()) == pytest.approx(1)
    for text, count in counts.most_common(5):
        expected = 5_000 * 2 ** -min(bits[text])
        assert abs(count - expected) < 5 * expected**0.5, text


@pytest.mark.parametrize("number, expected, p", [(0.5, "cludam", 0.9), (0.95, "udam", 0.1)])
def test_the_bits_of_a_name_are_those_of_each_of_its_choices(number, expected, p):
    s = {"bits": []}
    fifth = SimpleNamespace(choice=lambda options: options[4], random=lambda: number)
    marked = synthetic_stories.syllables(s, fifth)
    lists = [english.VOWELS, english.MIDDLES, english.ENDINGS]
    lists += [english.ONSETS] if p == 0.9 else []  # one name in ten begins with a vowel
    assert MARK.sub("", marked) == expected
    p *= 4 / 6 * math.prod(options.count(options[4]) / len(options) for options in lists)
    assert sum_of_bits(marked, s) == pytest.approx(-math.log2(p))


def test_what_a_name_of_its_own_changes_shows_in_a_mark():
    plots = [plot["story"] for plot in english.PLOTS.values()]
    assert all("{named}" in way for way in WORDS["meet"])  # where the mark of this choice stands
    assert all("{meet}" in plot for plot in plots if "{call}" in plot)


def test_synthesize_writes_the_limit_and_the_log_and_the_picture_show_it(data, trained, tmp_path):
    stories = read_json(f"{data}/TinyStories_all_data/data00.json", list)
    limit = sum(s["bits"] for s in stories) / sum(len(s["story"].encode()) for s in stories)
    assert 0.13 < limit < 0.16
    assert read_json(f"{data}/tok512/meta.json")["limit_bpb"] == pytest.approx(limit, abs=1e-4)
    rows = [row for row in read_rows(f"{trained}/log.jsonl") if "val_bpb" in row]
    assert all(row["limit_bpb"] == pytest.approx(limit, abs=1e-4) for row in rows)
    assert rows[-1]["val_bpb"] > rows[-1]["limit_bpb"]
    nats = plot.limit_in_nats(rows)
    assert nats / rows[-1]["val_loss"] == pytest.approx(limit / rows[-1]["val_bpb"], rel=1e-3)
    assert plot.limit_in_nats([{"val_bpb": 1.0, "val_loss": 2.0}]) is None
    pytest.importorskip("matplotlib")
    plot.draw([f"{trained}/log.jsonl"], f"{tmp_path}/loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


# --- the checks: the grammar's own stories pass, planted faults are found

@pytest.fixture(scope="module")
def stories():
    """800 stories as compose() gives them, with the marks and the memory."""
    rng = random.Random("stories to check")
    return [(marked, s) for _, marked, s in (compose(rng) for _ in range(800))]


def plain(marked):
    return tidy(MARK.sub("", marked).replace("¶", " "))


@pytest.fixture(scope="module")
def verdicts(stories):
    return [check_story(plain(marked)) for marked, _ in stories]


@pytest.mark.parametrize("name", check_story(""))
def test_the_grammars_own_stories_have_the_property(name, verdicts):
    applies = [verdict[name] for verdict in verdicts if verdict[name] is not None]
    assert len(applies) > 200
    assert sum(applies) / len(applies) >= 0.995


# Each of these plants a fault in a story: plant(rng, text, marked, s) -> text, or None where it cannot.


def replace(rng, text, matches, word):
    """One of the matches becomes another word."""
    match = rng.choice(matches) if matches else None
    return match and text[: match.start()] + word + text[match.end() :]


def later(word, text):
    return list(re.finditer(rf"\b{word}\b", text))[1:]  # the first says what it is


def misspell(rng, word):
    """Another letter, one letter less, or two that have changed places."""
    i = rng.randrange(1, len(word) - 1)
    letter = rng.choice([c for c in "bdgklmnprt" if c != word[i]])
    swapped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    others = [word[:i] + letter + word[i + 1 :], word[:i] + word[i + 1 :], swapped]
    return rng.choice([other for other in others if other != word])


def cut_off(rng, text, marked, s):
    words = text.split(" ")
    return " ".join(words[: rng.choice([i for i in range(20, len(words)) if words[i - 1][-1] not in '.!?"'])])


def another_word_for(slot):
    def plant(rng, text, marked, s):
        word = MARK.sub("", s[slot])
        others = [misspell(rng, word), MARK.sub("", made_up_name({"bits": []}, rng))]
        others = [name for name in SEXES if name != word] if slot == "hero" else others
        return replace(rng, text, later(word, text), rng.choice(others))

    return plant


OTHER_SEX = {"he": "she", "him": "her", "his": "her", "she": "he", "her": "his", "boy": "girl", "girl": "boy"}


def another_pronoun(rng, text, marked, s):
    """One of the pronouns that have the mark of the hero's sex is one of the other sex."""
    sex = s["he"][-1]
    text = tidy(re.sub(f"(?!{sex}){MARK.pattern}", "", marked).replace("¶", " "))
    matches = [m for m in re.finditer(rf"\b(\w+){sex}", text) if m[1].lower() in OTHER_SEX]
    if not matches or MARK.sub("", s["hero"]) not in text:
        return None
    match = rng.choice(matches)
    word = OTHER_SEX[match[1].lower()]
    word = word.capitalize() if match[1][0].isupper() else word
    return replace(rng, text, [match], word).replace(sex, "")


def another_thing(rng, text, marked, s):
    """A food, the toy animal that was lost, or the toy that was taken is another one later."""
    for slot, before in (("food", ""), ("plush", "(?<=toy )"), ("toy", "(?<=my )")):
        word = MARK.sub("", s.get(slot, "-"))
        matches = later(before + word, text)
        if matches:
            return replace(rng, text, matches, rng.choice([w for w in WORDS[slot] if w != word]))
    return None


def no_word(rng, text, marked, s):
    match = rng.choice([m for m in WORD.finditer(text) if m[0].islower() and len(m[0]) > 5])
    return replace(rng, text, [match], misspell(rng, match[0]))


FAULTS = {
    "ended by itself": cut_off,
    "hero keeps the name": another_word_for("hero"),
    "creature's word kept": another_word_for("kind"),
    "own name kept": another_word_for("cname"),
    "pronouns fit the hero": another_pronoun,
    "thing keeps its kind": another_thing,
    "every word is one": no_word,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, stories):
    rng = random.Random(name)
    planted = [FAULTS[name](rng, plain(marked), marked, s) for marked, s in stories]
    found = [check_story(text)[name] is False for text in planted if text]
    assert len(found) > 150
    assert sum(found) / len(found) >= 0.95


def test_words_of_the_grammar_are_words_and_what_a_model_writes_at_first_is_checked_too():
    assert unknown_words("The Wump's kite was turquoise, and she could not sleep without the Wumps.") == []
    assert unknown_words("The kitte was turquose.") == ["kitte", "turquose"]
    verdict = check_story("\x01 she\x02\x01 he\x00 \uf000 Tom's' 's A The\x01", ended=False)
    assert verdict["ended by itself"] is False and verdict["hero keeps the name"] is True
    assert verdict["creature's word kept"] is None


# --- copies, and the command

def naive_longest_copy(text, others):
    words = text.split()
    pieces = ((n, words[i : i + n]) for n in range(len(words), 0, -1) for i in range(len(words) - n + 1))
    spaced = [f" {' '.join(other.split())} " for other in others]
    return next((n for n, piece in pieces if any(f" {' '.join(piece)} " in other for other in spaced)), 0)


def test_the_longest_copied_piece_is_that_of_a_naive_search():
    rng = random.Random(0)
    others = [" ".join(rng.choices("abcd", k=rng.randint(1, 60))) for _ in range(40)]
    texts = [" ".join(rng.choices("abcde", k=rng.randint(1, 40))) for _ in range(40)] + ["e e", others[3]]
    want = [naive_longest_copy(text, others) for text in texts]
    assert longest_copies(texts, others) == want
    assert want[-2] == 0 and want[-1] == len(others[3].split()) and len(set(want)) > 4


def test_the_command_prints_the_table_of_a_file_and_of_a_checkpoint(data, trained, tmp_path):
    rng = random.Random(3)
    good = [tell(rng)["story"] for _ in range(19)]
    write_json(f"{tmp_path}/stories.json", [{"story": text} for text in [*good, "Lily met a Wump. Tom"]])
    out, _ = run("extras.story_check", *flags(input_path=f"{tmp_path}/stories.json", data_dir=data))
    assert re.search(r"ended by itself +95\.0%  of 20\n", out)
    assert re.search(r"every word is one +100\.0%  of 20\n", out)
    assert re.search(r"longest piece copied from training stories, in these stories: \d+ words", out)
    out, _ = run("extras.story_check", *flags(checkpoint=f"{trained}/ckpt.pt", num_stories=3,
                 max_new_tokens=30, data_dir=f"{tmp_path}/none"))  # fmt: skip
    assert out.startswith("16 stories\n") and "not known, there are no stories" in out
    write_json(f"{tmp_path}/empty.json", [])
    for name, says in (("none", "no file"), ("empty", "has no story")):
        assert says in run("extras.story_check", f"--input_path={tmp_path}/{name}.json", ok=False)[1]


# --- the same in Chinese

def test_the_bits_of_a_chinese_story_are_those_that_its_frequency_says(monkeypatch):
    monkeypatch.setitem(CHINESE.words, "any", ["甲", "乙"])
    monkeypatch.setitem(CHINESE.words, "name", ["{any}{any2}", "{any}{any}"])
    tables = "m: n/丙: [丁|戊]/己: 庚 ¶ x/辛/壬/癸"
    plot = {"together": tables, "story": "{m}{n}{x}¶{hero}{he}，{kind}[a|b]"}
    heroes = {"girl": ["莉莉"], "boy": ["小明", "小刚"]}
    small = CHINESE._replace(heroes=heroes, kins=("妈妈",), plots={"{hero}": plot})
    rng = random.Random(0)
    bits, counts = {}, Counter()
    for _ in range(20_000):
        _, marked, s = compose(rng, small)
        text = MARK.sub("", marked)
        hidden = s["cname"] + s["kin"]  # the story does not show them
        assert not set(MARK.findall(hidden)) & set(MARK.findall(marked))
        counts[text] += 1
        bits[text] = sum_of_bits(marked, s)
    assert sum(2**-b for b in bits.values()) == pytest.approx(1)
    for text, count in counts.items():
        expected = 20_000 * 2 ** -bits[text]
        assert abs(count - expected) < 5 * expected**0.5, text


@pytest.fixture(scope="module")
def chinese_stories():
    """800 stories as compose() gives them, with the marks and the memory."""
    rng = random.Random("Chinese stories to check")
    return [(marked, s) for _, marked, s in (compose(rng, CHINESE) for _ in range(800))]


def plain_chinese(marked):
    return tidy(MARK.sub("", marked).replace("¶", " "), "")


def test_chinese_stories_repeat_a_name_and_none_has_a_word_that_is_tried(chinese_stories):
    texts = [plain_chinese(marked) for marked, _ in chinese_stories]
    for text, (_, s) in zip(texts, chinese_stories):
        assert max(text.count(MARK.sub("", s[slot])) for slot in ("kind", "cname")) >= 5, text
        assert re.fullmatch("[^A-Za-z\\[\\]{}|/ ¶]+", text) and 180 < len(text) < 400
    characters = set("".join(texts)) - set("".join(chinese.WORDS["rare"].split())) | chinese.OWN
    with open(f"{HERE}/quickstart.sh", encoding="utf-8") as f:  # each a piece, beside 260 others
        assert int(re.search(r"vocab=(\d+) # the characters", f.read())[1]) == len(characters) + 260
    assert len(chinese.KEPT_OUT) >= 40
    assert not [word for word in chinese.KEPT_OUT if word in "".join(texts)]


@pytest.mark.parametrize("name", chinese_check.check_story(""))
def test_the_grammars_own_chinese_stories_have_the_property(name, chinese_stories):
    verdicts = [chinese_check.check_story(plain_chinese(marked))[name] for marked, _ in chinese_stories]
    applies = [verdict for verdict in verdicts if verdict is not None]
    assert len(applies) > (30 if name == "own name kept" else 600)
    assert sum(applies) / len(applies) >= 0.995


def replace_later(rng, text, word, others):
    """One of the places where a word stands, but not the first, has another."""
    matches = list(re.finditer(word, text))[1:]
    return replace(rng, text, matches, rng.choice([other for other in others if other != word]))


def another_chinese_name(slot):
    def plant(rng, text, s):
        word = MARK.sub("", s[slot])
        if slot == "hero":
            return replace_later(rng, text, word, chinese_check.SEXES)
        i = rng.randrange(len(word))
        swapped = word[:i] + rng.choice("锅驴竹瓷") + word[i + 1 :]
        new = MARK.sub("", chinese_name({"bits": []}, rng))
        return replace_later(rng, text, word, [swapped, new, word + "锅", word[:1] if word[1:] else "驴"])

    return plant


def another_chinese_thing(rng, text, s):
    things = sorted(chinese_check.column("thing"))
    return replace_later(rng, text, MARK.sub("", s["thing"]), things) if "thing" in s else None


def another_chinese_colour(rng, text, s):
    words = [MARK.sub("", s[slot]) for slot in ("colour", "colour2") if slot in s]
    words = [word for word in words if len(re.findall(f"{word}的(?![耳小])", text)) > 1]
    if not words or len(set(words)) < len(words):
        return None
    return replace_later(rng, text, f"{rng.choice(words)}的", [f"{c}的" for c in CHINESE.words["colour"]])


def cut_off_chinese(rng, text, s):
    return text[: rng.choice([i for i in range(50, len(text)) if text[i - 1] not in "。！？”"])]


def another_chinese_pronoun(rng, text, s):
    return replace(rng, text, list(re.finditer("[他她](?!们)", text)), "她" if "男" in s["boy"] else "他")


def no_chinese_word(rng, text, s):
    """A character of a long word is another one."""
    names = "|".join(MARK.sub("", s[slot]) for slot in ("kind", "cname", "hero"))
    matches = [m for m in re.finditer(r"[^，。！？：“”]{4,}", text) if not re.search(names, m[0])]
    i = rng.choice(matches).start() + rng.randrange(1, 3)
    return text[:i] + rng.choice("锅驴竹瓷") + text[i + 1 :]


CHINESE_FAULTS = {
    "ended by itself": cut_off_chinese,
    "hero keeps the name": another_chinese_name("hero"),
    "creature's word kept": another_chinese_name("kind"),
    "own name kept": another_chinese_name("cname"),
    "pronouns fit the hero": another_chinese_pronoun,
    "thing keeps its kind": another_chinese_thing,
    "thing keeps its colour": another_chinese_colour,
    "every word is one": no_chinese_word,
}


@pytest.mark.parametrize("name", CHINESE_FAULTS)
def test_a_fault_planted_in_a_chinese_story_is_found(name, chinese_stories):
    rng = random.Random(name)
    planted = [CHINESE_FAULTS[name](rng, plain_chinese(marked), s) for marked, s in chinese_stories]
    found = [chinese_check.check_story(text)[name] is False for text in planted if text]
    few = name == "own name kept"
    assert len(found) > (30 if few else 150)
    assert sum(found) / len(found) >= (0.9 if few else 0.95)


def test_the_command_finds_out_that_stories_are_chinese(tmp_path):
    rng = random.Random(3)
    write_json(f"{tmp_path}/stories.json", [{"story": tell(rng, CHINESE)["story"]} for _ in range(20)])
    out, _ = run("extras.story_check", *flags(input_path=f"{tmp_path}/stories.json", data_dir=tmp_path))
    assert re.search(r"thing keeps its colour +100\.0%  of \d+\n", out)
