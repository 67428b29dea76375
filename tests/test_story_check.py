"""Synthetic stories: their limit, and the program that counts what a model keeps."""

import hashlib
import json
import random
import re
from collections import Counter

import pytest

from configurator import InputError, read_json, write_json
from extras import plot, story_check, synthetic_stories
from extras.stories import chinese, chinese_check, english, names
from extras.story_check import check_story, longest_copies, unknown_words
from extras.synthetic_stories import CHINESE, ENGLISH, LANGUAGES, MARK, WORDS, compose, tell
from tests.fixtures import flags, read_rows, run_here

pytest_plugins = ["tests.fixtures"]


def test_the_stories_of_a_seed_and_their_bits_are_the_same_for_ever():
    stories = synthetic_stories.write_shard(42, 0, 200_000)
    digest = hashlib.sha256(json.dumps(stories).encode()).hexdigest()
    assert digest == "d38dd9eeda3fa6186bbc434f1392a0cc7ef0508e24e823401afeaeefc68ee6e6"


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
FEW = ENGLISH._replace(heroes={"girl": ["Lily"], "boy": ["Tom"]})
LIMITS += [(FEW._replace(plots={"": {"story": template}}), 30_000) for template in ("{kind}", "{hero} {he}")]
SMALL_NAMES = {
    "WAYS": [names.thing], "ACCENTS": {"u": "ü"}, "NOUNS": ["bed", "oak"], "ANIMALS": ["elk"],
    "CODES": ["A-9"], "CHARACTERS": {"A": ["A", "B"], "9": ["1"], "-": ["-"]},
}  # fmt: skip


@pytest.mark.parametrize("language, number", LIMITS)
def test_a_text_is_as_frequent_as_its_bits_say_and_all_probabilities_add_up_to_one(
    language, number, monkeypatch
):
    monkeypatch.setitem(WORDS, "looks", ["{boy}", "[x|y] {weekday}"])
    monkeypatch.setattr(english, "THINGS", ["mog", "rug"])
    for name, few in SMALL_NAMES.items():
        monkeypatch.setattr(names, name, few)
    few = {"any": ["甲", "乙"], "name": ["{any}{any2}", "{any}{any}"], "hero_name": ["甲丽", "甲强"]}
    for words, slots in ((CHINESE.words, few), (WORDS, {"hero_name": ["Pu", "Xi"]})):
        for slot, entries in slots.items():
            monkeypatch.setitem(words, slot, entries)
    rng = random.Random(0)
    bits, counts = {}, Counter()
    for _ in range(number):
        _, marked, s = compose(rng, language)
        text = MARK.sub("", marked)
        counts[text] += 1
        cost = synthetic_stories.sum_of_bits(marked, s)
        bits[text] = min(cost, bits.get(text, cost))
    assert sum(2**-b for b in bits.values()) == pytest.approx(1, abs=1e-3)
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


CHECKS = {"en": story_check, "zh": chinese_check}


@pytest.fixture(scope="module")
def stories():
    """{language: 800 of the grammar's own stories}"""
    rng = random.Random(0)
    return {name: [tell(rng, language)["story"] for _ in range(800)] for name, language in LANGUAGES.items()}


@pytest.mark.parametrize("language", CHECKS)
def test_the_grammars_own_stories_have_each_property(language, stories):
    verdicts = [CHECKS[language].check_story(text) for text in stories[language]]
    for name in verdicts[0]:
        applies = [verdict[name] for verdict in verdicts if verdict[name] is not None]
        assert len(applies) > 30, name
        assert sum(applies) / len(applies) >= 0.995, name


SHARED = """One day, Sara met a Wump named Ninaket. Sara had a doughnut in her basket. "You can have half, \
Ninaket," she said. "This is the best doughnut in the world," said the Wump. Then the Wump took out a tiny \
blue marble. "This tiny blue marble is for you, Sara." They saw a flag over the hut. The flag over the hut \
was old. When the sun went down, they tried to light a little lamp, and it helped. She smiled."""
MET = """有一天，丫丫遇到了一只澡澡。澡澡全身都是蓝色的，还有一双亮晶晶的眼睛。\
“我一天没吃东西了，”澡澡小声说。丫丫手里正好有一个春卷，是外婆刚买的。澡澡吃着春卷，跳了一下，说：“这个春卷真好吃！”丫丫笑了，澡澡也笑了。\
澡澡试了试，被绳子绊住了脚。终于，澡澡一连跳了二十下！"""
LOST = """从前，有个男孩叫大壮。他有一只棕色的布熊，名字叫储储。一天下午，储储不见了。“别急，”外婆说，\
“那只棕色的布熊一定还在家里。”大壮想啊想，又去看了看床底下。“找到你啦，储储！”大壮把它抱得紧紧的。"""
FORMS = {"Komodo bear": "Komodo", "Rop Zug": "Rop Zag", "R2-D2": "R2-D1", "GPU": "GPT", "Pokémun": "Pokemun"}
FORMS |= {"Rop zug": "Rop zag"}
FAULTS = [  # (a story, a word, what stands in its last place instead, the property that is lost)
    (SHARED, "smiled.", "", "ended by itself"), (LOST, "的。", "", "ended by itself"),
    (SHARED, "Sara", "Lily", "hero keeps the name"), (MET, "丫丫", "莉莉", "hero keeps the name"),
    (SHARED, "Wump", "Wumk", "creature's word kept"), (MET, "澡澡", "澡锅", "creature's word kept"),
    (SHARED, "Ninaket", "Nanaket", "own name kept"), (LOST, "储储", "储锅", "own name kept"),
    (SHARED, "She", "He", "pronouns fit the hero"), (LOST, "他", "她", "pronouns fit the hero"),
    (SHARED, "doughnut", "bagel", "thing keeps its kind"), (LOST, "布熊", "布兔子", "thing keeps its kind"),
    (SHARED, "tiny", "big", "colour and size stay"), (SHARED, "blue", "red", "colour and size stay"),
    (LOST, "棕色", "红色", "thing keeps its colour"), (SHARED, "hut", "log", "thing keeps its kind"),
    (SHARED, "sun went down", "wind howled in the trees", "help fits the trouble"),
    (MET, "跳了二十下", "踢了十下", "help fits the trouble"),
    (SHARED, "basket", "baskot", "every word is one"), (MET, "正好", "正驴", "every word is one"),
    *((SHARED.replace("Wump", kind), kind, other, "creature's word kept") for kind, other in FORMS.items()),
]  # fmt: skip


@pytest.mark.parametrize("story, word, other, lost", FAULTS)
def test_a_planted_fault_is_found(story, word, other, lost):
    check = (chinese_check if "，" in story else story_check).check_story
    assert False not in check(story).values()
    before, _, after = story.rpartition(word)
    assert check(before + other + after)[lost] is False


def test_chinese_stories_have_no_sign_of_the_grammar_and_no_word_that_is_tried(stories):
    for text in stories["zh"]:
        assert re.fullmatch("[^\\[\\]{}|/ ¶]+", text.replace("\n", "")) and 180 < len(text) < 430
        assert not [word for word in chinese.KEPT_OUT if word in text]


def test_words_of_the_grammar_are_words_and_what_a_model_writes_at_first_is_checked_too():
    assert unknown_words("The Wump's kite was turquoise, and she could not sleep without the Wumps.") == []
    assert unknown_words("The kitte was turquose.") == ["kitte", "turquose"]
    verdict = check_story("\x01 she\x02\x01 he\x00 \uf000 Tom's' 's A The\x01", ended=False)
    assert verdict["ended by itself"] is False and verdict["hero keeps the name"] is True
    assert verdict["creature's word kept"] is None


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
    assert re.search(r"longest piece copied from training stories, in these stories: \d+ words", out)
    assert re.search(r"thing keeps its colour +100\.0%  of \d+\n", check("zh", told["zh"]))
    out = check("none", checkpoint=f"{trained}/ckpt.pt", num_stories=3, max_new_tokens=30)
    assert out.startswith("16 stories\n") and "not known, there are no stories" in out
    with pytest.raises(InputError, match="empty.json has no story"):
        check("empty")


def test_a_typed_word_is_judged_though_the_grammar_has_it_as_well():
    story = 'One day, Lily met a {0} in the garden. The {1} had a {0}. "Hello, {0}!" said Lily.'
    for word, other in (("Umbrella", "Umbrellar"), ("goose", "geese"), ("Shoggoth", "Shoggo")):
        assert [story_check.is_about(story.format(word, w), word) for w in (word, other)] == [True, False]
