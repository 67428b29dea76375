"""Synthetic stories: their limit, and the program that counts what a model keeps."""

import hashlib
import json
import random
import re
from collections import Counter

import pytest

from configurator import InputError, read_json, write_json
from extras import plot, story_check, synthetic_stories
from extras.stories import chinese, chinese_check
from extras.story_check import check_story, longest_copies, unknown_words
from extras.synthetic_stories import CHINESE, ENGLISH, LANGUAGES, MARK, WORDS, compose, tell, tidy
from tests.fixtures import flags, read_rows, run_here

pytest_plugins = ["tests.fixtures"]


# --- the limit

def test_the_stories_of_a_seed_and_their_bits_are_the_same_for_ever():
    rows = []
    for s in synthetic_stories.write_shard(42, 0, 200_000):
        rows.append([s["story"], s["summary"], s["source"], s["instruction"]["words"], s["bits"]])
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "0abbe58d9c7d805fd070fc8e1f8a17e443853cc5a332b89e04c04799e8c34855"


TEMPLATES = (
    "[a|a|b|]",
    "[[big|small] tear|nothing|nothing]",  # what is hidden costs nothing
    "{small} and {small2}, {small}",  # the second is another one
    "{weekday}[: {small}|]",
    "{he} and {his} {kin}, {looks}",
)
TABLES = {"together": "m: n/丙: [丁|戊]/己: 庚 ¶ x/辛/壬/癸", "story": "{m}{n}{x}¶{hero}{he}，{kind}[a|b]"}
HEROES = {"girl": ["莉莉"], "boy": ["小明"]}
LIMITS = [(ENGLISH._replace(plots={"": {"story": template}}), 5_000) for template in TEMPLATES]
LIMITS.append((CHINESE._replace(plots={"": TABLES}, heroes=HEROES, kins=("妈妈",)), 30_000))


@pytest.mark.parametrize("language, number", LIMITS)
def test_a_text_is_as_frequent_as_its_bits_say_and_all_probabilities_add_up_to_one(
    language, number, monkeypatch
):
    monkeypatch.setitem(WORDS, "looks", ["{boy}", "[x|y] {weekday}"])
    names = {"any": ["甲", "乙"], "name": ["{any}{any2}", "{any}{any}"]}
    for slot, entries in (names | {"girl_name": ["甲丽"], "boy_name": ["甲强"]}).items():
        monkeypatch.setitem(CHINESE.words, slot, entries)
    rng = random.Random(0)
    bits, counts = {}, Counter()
    for _ in range(number):
        _, marked, s = compose(rng, language)
        text = MARK.sub("", marked)
        counts[text] += 1
        cost = synthetic_stories.sum_of_bits(marked, s)
        bits[text] = min(cost, bits.get(text, cost))
    assert sum(2**-b for b in bits.values()) == pytest.approx(1)
    for text, count in counts.items():
        expected = number * 2 ** -bits[text]
        assert abs(count - expected) < 5 * expected**0.5, text


def test_synthesize_writes_the_limit_and_log_and_picture_show_it(data, trained):
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


# --- the checks: the grammar's own stories pass, planted faults are found

CHECKS = {"en": story_check, "zh": chinese_check}
LETTERS = {"en": "bdgklmnprt", "zh": "锅驴竹瓷"}


@pytest.fixture(scope="module")
def stories():
    """{language: 800 of the grammar's own stories}, each with its memory."""
    found = {}
    for name, language in LANGUAGES.items():
        rng = random.Random(f"stories to check: {name}")
        found[name] = []
        for _, marked, s in (compose(rng, language) for _ in range(800)):
            text = tidy(MARK.sub("", marked).replace("¶", " "), language.space)
            found[name].append((text, {k: MARK.sub("", v) for k, v in s.items() if isinstance(v, str)}))
    return found


@pytest.mark.parametrize("language", CHECKS)
def test_the_grammars_own_stories_have_each_property(language, stories):
    verdicts = [CHECKS[language].check_story(text) for text, _ in stories[language]]
    for name in verdicts[0]:
        applies = [verdict[name] for verdict in verdicts if verdict[name] is not None]
        assert len(applies) > 30, name
        assert sum(applies) / len(applies) >= 0.995, name


# Each of these plants a fault: plant(rng, text, s, language) -> text, or None where it cannot.


def replace(rng, text, word, others, language):
    """A word becomes another one in a place that is not the first, which says what it is."""
    pattern = rf"\b(?:{word})\b" if language == "en" else f"(?:{word})(?!们)"
    matches = list(re.finditer(pattern, text))[1:]
    if not matches:
        return None
    match = rng.choice(matches)
    return text[: match.start()] + rng.choice([o for o in others if o != match[0]]) + text[match.end() :]


def another_letter(rng, word, language):
    """In place of the second one, say; the first may be a capital."""
    i = rng.randrange(1, len(word)) if len(word) > 1 else 0
    return word[:i] + rng.choice(LETTERS[language]) + word[i + 1 :]


def cut_off(rng, text, s, language):
    return text[: rng.choice([i for i in range(50, len(text)) if text[i - 1] not in '.!?"。！？”'])]


def another_hero(rng, text, s, language):
    return replace(rng, text, s["hero"], CHECKS[language].SEXES, language)


def another_name_for(slot):
    def plant(rng, text, s, language):
        new = MARK.sub("", LANGUAGES[language].make_name({"bits": []}, rng))
        others = [another_letter(rng, s[slot], language), s[slot] + LETTERS[language][0], new]
        return replace(rng, text, s[slot], others, language)

    return plant


def another_pronoun(rng, text, s, language):
    """Or, in Chinese, where a story tells the sex first, another pronoun than that."""
    words = LANGUAGES[language].pronouns
    sex, other = ("boy", "girl") if s["he"] == words["boy"][0] else ("girl", "boy")
    told = words[sex] if language == "en" else (CHINESE.sexes[sex], *words[sex])
    return replace(rng, text, "|".join(told), words[other], language) if s["hero"] in text else None


def another_thing(rng, text, s, language):
    """A food, the toy animal that was lost, or the toy that was taken is another one later."""
    slots = {"food": "", "plush": "(?<=toy )", "toy": "(?<=my )"} if language == "en" else {"thing": ""}
    for slot, before in slots.items():
        others = WORDS[slot] if language == "en" else sorted(chinese_check.column(slot))
        changed = slot in s and replace(rng, text, before + s[slot], others, language)
        if changed:
            return changed
    return None


def no_word(rng, text, s, language):
    """Another letter in a long word, or in Chinese in what stands between two commas."""
    words = re.findall(r"\b[a-z]{6,}\b" if language == "en" else "[^，。！？：“”]{4,}", text)
    names = "|".join(s[slot] for slot in ("kind", "cname", "hero"))
    word = rng.choice([word for word in words if not re.search(names, word)])
    return text.replace(word, another_letter(rng, word[:-1], language) + word[-1], 1)


FAULTS = {
    "ended by itself": cut_off,
    "hero keeps the name": another_hero,
    "creature's word kept": another_name_for("kind"),
    "own name kept": another_name_for("cname"),
    "pronouns fit the hero": another_pronoun,
    "thing keeps its kind": another_thing,
    "every word is one": no_word,
}


@pytest.mark.parametrize("language", CHECKS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(language, name, stories):
    rng = random.Random(name)
    planted = [FAULTS[name](rng, text, s, language) for text, s in stories[language]]
    found = [CHECKS[language].check_story(text)[name] is False for text in planted if text]
    assert len(found) > 30 and sum(found) / len(found) > 0.9


def test_chinese_stories_repeat_a_name_and_none_has_a_word_that_is_tried(stories):
    for text, s in stories["zh"]:
        assert max(text.count(s["kind"]), text.count(s["cname"])) >= 5, text
        assert re.fullmatch("[^A-Za-z\\[\\]{}|/ ¶]+", text) and 180 < len(text) < 400
    everything = "".join(text for text, _ in stories["zh"])
    assert len(chinese.KEPT_OUT) >= 40 and not [w for w in chinese.KEPT_OUT if w in everything]


def test_words_of_the_grammar_are_words_and_what_a_model_writes_at_first_is_checked_too():
    assert unknown_words("The Wump's kite was turquoise, and she could not sleep without the Wumps.") == []
    assert unknown_words("The kitte was turquose.") == ["kitte", "turquose"]
    verdict = check_story("\x01 she\x02\x01 he\x00 \uf000 Tom's' 's A The\x01", ended=False)
    assert verdict["ended by itself"] is False and verdict["hero keeps the name"] is True
    assert verdict["creature's word kept"] is None


# --- copies, and the command

def test_the_longest_copied_piece_is_counted_in_words():
    training = ["a b c d", "c d e a"]
    longest = {"x a b c y d e a": 3, "b c d e": 3, "c d e a": 4, "a  b a b": 2, "d c b": 1, "x ab": 0}
    assert longest_copies(list(longest), training) == list(longest.values())


def test_the_command_prints_the_table_of_a_file_in_either_language_and_of_a_checkpoint(
    data, trained, tmp_path, capsys
):
    def check(name, texts=(), **options):
        write_json(f"{tmp_path}/{name}.json", [{"story": text} for text in texts])
        options |= {"input_path": f"{tmp_path}/{name}.json"} if "checkpoint" not in options else {}
        run_here("extras/story_check.py", *flags(**{"data_dir": f"{tmp_path}/none"} | options))
        return capsys.readouterr().out

    rng = random.Random(3)
    told = {name: [tell(rng, language)["story"] for _ in range(19)] for name, language in LANGUAGES.items()}
    out = check("en", [*told["en"], "Lily met a Wump. Tom"], data_dir=data)
    assert re.search(r"ended by itself +95\.0%  of 20\n", out)
    assert re.search(r"every word is one +100\.0%  of 20\n", out)
    assert re.search(r"longest piece copied from training stories, in these stories: \d+ words", out)
    assert re.search(r"thing keeps its colour +100\.0%  of \d+\n", check("zh", told["zh"]))
    out = check("none", checkpoint=f"{trained}/ckpt.pt", num_stories=3, max_new_tokens=30)
    assert out.startswith("16 stories\n") and "not known, there are no stories" in out
    with pytest.raises(InputError, match="empty.json has no story"):
        check("empty")
