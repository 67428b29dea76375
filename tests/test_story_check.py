"""Synthetic stories: their limit, and the program that counts what a model keeps."""

import hashlib
import json
import math
import random
import re
from collections import Counter

import pytest
import torch

from extras import plot, story_check, synthetic_stories
from extras.longest_copy import longest_copies
from extras.story_check import SEXES, WORD, check_story, unknown_words
from extras.synthetic_stories import MARK, WORDS, cast, compose, expand, sum_of_bits, tell, tidy
from model import Transformer, load_checkpoint
from tests.fixtures import SMALL, flags, read_rows, run, run_here
from tinystories import read_json, write_json
from tokenizer import Tokenizer

pytest_plugins = ["tests.fixtures"]


# --------------------------------------------------------------------------------------------------------
# the limit


def test_the_stories_of_a_seed_are_the_same_to_the_byte_for_ever():
    rows = []
    for s in synthetic_stories.write_shard(42, 0, 200_000):
        rows.append([s["story"], s["summary"], s["source"], s["instruction"]["words"]])
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "624f1a8d09982628e1d2737105c102e46d33ac4c2e7c3b454b041930febc9fe2"


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


def test_the_bits_of_made_up_names_are_their_probability():
    rng = random.Random(0)
    counts, bits = Counter(), {}
    for _ in range(40_000):
        s = {"bits": []}
        marked = synthetic_stories.made_up_name(s, rng)
        name = MARK.sub("", marked)
        counts[name] += 1
        bits[name] = sum_of_bits(marked, s)
    likely = [name for name in bits if bits[name] < 14]  # those without an onset: Angle, Oodle, ...
    kept = 2**0.24  # names that are rejected leave their share to the others
    expected = sum(40_000 * kept * 2 ** -bits[name] for name in likely)
    found = sum(counts[name] for name in likely)
    assert found > 80 and abs(found - expected) < 4 * expected**0.5


class Fifth(random.Random):
    """Always takes the fifth option."""

    def choice(self, options):
        return options[4]

    def random(self):
        return 0.5


def test_the_bits_of_a_name_are_those_of_each_of_its_choices():
    s = {"bits": []}
    marked = synthetic_stories.made_up_name(s, Fifth())
    lists = [getattr(synthetic_stories, name) for name in ("ONSETS", "VOWELS", "MIDDLES", "ENDINGS")]
    assert MARK.sub("", marked) == "".join(options[4] for options in lists).capitalize() == "Cludam"
    p = 0.9 * 4 / 6 * math.prod(options.count(options[4]) / len(options) for options in lists)
    assert sum_of_bits(marked, s) == pytest.approx(-math.log2(p))


def test_what_a_name_of_its_own_changes_shows_in_a_mark():
    plots = [plot["story"] for plot in synthetic_stories.PLOTS.values()]
    assert all("{named}" in way for way in WORDS["meet"])  # where the mark of this choice stands
    assert all("{meet}" in plot for plot in plots if "{call}" in plot)


def test_synthesize_writes_the_limit_and_the_log_and_the_picture_show_it(data, trained, tmp_path):
    stories = read_json(f"{data}/TinyStories_all_data/data00.json")
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


# --------------------------------------------------------------------------------------------------------
# the checks: the grammar's own stories pass, planted faults are found


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


@pytest.mark.parametrize("name", story_check.TITLES)
def test_the_grammars_own_stories_have_the_property(name, verdicts):
    applies = [verdict[name] for verdict in verdicts if verdict[name] is not None]
    assert len(applies) > 200
    assert sum(applies) / len(applies) >= 0.995


def pick(rng, matches):
    matches = list(matches)
    return rng.choice(matches) if matches else None


def put(text, match, word):
    return text[: match.start()] + word + text[match.end() :]


def misspell(rng, word):
    """Another letter, one letter less, or two that have changed places."""
    i = rng.randrange(1, len(word) - 1)
    letter = rng.choice([c for c in "bdgklmnprt" if c != word[i]])
    swapped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return rng.choice([word[:i] + letter + word[i + 1 :], word[:i] + word[i + 1 :], swapped])


def cut_off(rng, marked, s):
    words = plain(marked).split(" ")
    cut = rng.choice([i for i in range(20, len(words)) if words[i - 1][-1] not in '.!?"'])
    return " ".join(words[:cut])


def another_hero(rng, marked, s):
    text = plain(marked)
    hero = MARK.sub("", s["hero"])
    match = pick(rng, list(re.finditer(rf"\b{hero}\b", text))[1:])
    return match and put(text, match, rng.choice([name for name in SEXES if name != hero]))


def another_word_for(slot):
    def plant(rng, marked, s):
        text = plain(marked)
        name = MARK.sub("", s[slot])
        match = pick(rng, list(re.finditer(rf"\b{name}\b", text))[1:])  # the first says what it is
        if not match:
            return None
        other = misspell(rng, name)
        if rng.random() < 0.5:
            other = MARK.sub("", synthetic_stories.made_up_name({"bits": []}, rng))
        return put(text, match, other) if other != name else None

    return plant


OTHER_SEX = {"he": "she", "him": "her", "his": "her", "she": "he", "her": "his", "boy": "girl", "girl": "boy"}


def another_pronoun(rng, marked, s):
    """One of the pronouns that have the mark of the hero's sex is one of the other sex."""
    mark = s["he"][-1]
    text = tidy(re.sub(f"(?!{mark}){MARK.pattern}", "", marked).replace("¶", " "))
    found = [m for m in re.finditer(rf"\b(\w+){mark}", text) if m[1].lower() in OTHER_SEX]
    match = pick(rng, found)
    if not match or MARK.sub("", s["hero"]) not in text:
        return None
    word = OTHER_SEX[match[1].lower()]
    return put(text, match, word.capitalize() if match[1][0].isupper() else word).replace(mark, "")


def another_thing(rng, marked, s):
    """The second time, a food, the toy that was taken, or the toy animal that was lost is another one."""
    text = plain(marked)
    for slot, pattern in (("food", r"\b{}\b"), ("plush", r"(?<=toy ){}\b"), ("toy", r"(?<=my ){}\b")):
        word = MARK.sub("", s.get(slot, "-"))
        found = list(re.finditer(pattern.format(word), text))
        if len(found) > 1:
            return put(text, rng.choice(found[1:]), rng.choice([w for w in WORDS[slot] if w != word]))
    return None


def no_word(rng, marked, s):
    text = plain(marked)
    match = pick(rng, (m for m in WORD.finditer(text) if m[0].islower() and len(m[0]) > 5))
    other = misspell(rng, match[0])
    return put(text, match, other) if other != match[0] else None


FAULTS = {
    "ended": cut_off,
    "hero": another_hero,
    "creature": another_word_for("kind"),
    "own_name": another_word_for("cname"),
    "pronouns": another_pronoun,
    "thing": another_thing,
    "words": no_word,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, stories):
    rng = random.Random(name)
    planted = [FAULTS[name](rng, marked, s) for marked, s in stories]
    found = [check_story(text)[name] is False for text in planted if text]
    assert len(found) > 150
    assert sum(found) / len(found) >= 0.95


def test_words_of_the_grammar_are_words_and_others_are_none():
    assert unknown_words("The Wump's kite was turquoise, and she could not sleep without the Wumps.") == []
    assert unknown_words("The kitte was turquose.") == ["kitte", "turquose"]


def test_what_a_model_writes_before_it_has_learned_anything_is_checked_too():
    verdict = check_story("\x01 she\x02\x01 he\x00 \uf000 Tom's' 's A The\x01", ended=False)
    assert verdict["ended"] is False and verdict["hero"] is True and verdict["creature"] is None


# --------------------------------------------------------------------------------------------------------
# copies, models, the command


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


def test_a_models_stories_are_checked_and_its_own_random_numbers_stay(trained):
    checkpoint = load_checkpoint(f"{trained}/last.pt")
    model = Transformer.from_checkpoint(checkpoint).train()
    state = torch.get_rng_state()
    found = story_check.check_model(model, Tokenizer(checkpoint["tokenizer"]), count=16)
    assert set(found) == {f"story_{name}" for name in story_check.TITLES}
    assert all(0 <= share <= 1 for share in found.values())
    assert model.training and torch.equal(state, torch.get_rng_state())


def test_train_logs_the_check(data, tmp_path):
    out = f"{tmp_path}/output"
    options = [*SMALL, "--max_seq_len=32", "--max_iters=2", "--eval_interval=2", "--story_check"]
    run_here("train.py", *options, f"--data_dir={data}", f"--out_dir={out}")
    rows = [row for row in read_rows(f"{out}/log.jsonl") if "val_bpb" in row]
    assert [row["step"] for row in rows] == [0, 2]
    assert all({f"story_{name}" for name in story_check.TITLES} < row.keys() for row in rows)


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


def test_what_is_no_file_of_stories_is_refused_in_one_sentence(tmp_path):
    _, err = run("extras.story_check", f"--input_path={tmp_path}/none.json", ok=False)
    assert "no file" in err
    write_json(f"{tmp_path}/empty.json", [])
    _, err = run("extras.story_check", f"--input_path={tmp_path}/empty.json", ok=False)
    assert "has no story" in err
