"""The texts: the files, commands, options and names of the code that they mention exist."""

import glob
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from configurator import parse_value
from tests.fixtures import HERE

FIRST_PAGES = ("README.md", "docs/README.zh.md")  # no translations of one another
COURSE = ("docs/course.md", "docs/course.zh.md")
PAIRS = (COURSE, ("docs/recipes.md", "docs/recipes.zh.md"))
DOCS = ["README.md", *sorted(glob.glob("docs/*.md", root_dir=HERE))]
EXERCISES = set("dpi dpy constant constnt kumquats data_play data10 output_c output_endless".split())
FOREIGN = set("pytest pip venv cmp F rms_norm max_autotune".split())
SHORTCUTS = {"toy": "train.py", "extras.page": "extras/page/__main__.py"}  # course.md defines toy
FENCED = r"(?ms)^```.*?^```"


def text_of(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return f.read()


def files(ending):
    rooms = ("", "extras/", "extras/page/", "extras/stories/", "tests/", "docs/", "docs/figures/")
    return [path for room in rooms for path in glob.glob(f"{room}*{ending}", root_dir=HERE)]


def blocks_of(name, language):
    return "\n".join(re.findall(rf"(?ms)^```{language}\n(.*?)^```", text_of(name)))


def commands_of(name):
    """(script, words) of each command with a script or module of ours, in code blocks and in backticks."""
    lines = blocks_of(name, "bash").replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|torchrun|accelerate|toy) [^`\n]+)`", text_of(name))
    for words in (shlex.split(line, comments=True) for line in lines if "() {" not in line):
        for i, word in enumerate(words):
            module = i and words[i - 1] == "-m" and word not in FOREIGN
            if word.endswith(".py") or module or (i == 0 and word in SHORTCUTS):
                path = word.replace(".", "/") + ".py" if module else word
                yield SHORTCUTS.get(word, path), words[i + 1 :]
                break


def check_command(script, words):
    source = text_of(script)
    options = dict(re.findall(r"^([a-z]\w*) = (.*)$", source, re.MULTILINE)) | {"help": ""}
    commands = re.findall(r'"(\w+)"', "".join(re.findall(r"^COMMANDS = (.*)$", source, re.MULTILINE)))
    if commands and script != "extras/train_hf.py":  # which may leave out its command `train`
        assert words[0] in [*commands, "--help"], (script, words)
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and not {key, value} & EXERCISES:
            assert key in options, (script, word)
            default, _, comment = options[key].partition("  # ")
            if " | " in comment and "PATH" not in comment:
                parse_value(value, default.strip('"'), comment)


@pytest.mark.parametrize("name", DOCS)
def test_the_commands_names_and_files_in_a_text_exist(name):
    text = text_of(name)
    if name == "docs/tutorial.zh.md":  # the first column has the tutorial's names
        text = re.sub(r"(?m)^\|[^|]*\|", "|", text)
    for script, words in commands_of(name):
        check_command(script, words)
    scripts = [path for path in files(".py") if path != "tests/test_docs.py"]
    known = set(re.findall(r"\w+", "\n".join(map(text_of, scripts)))) | EXERCISES | FOREIGN
    for span in re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*?\))?`", re.sub(FENCED, "", text)):
        if not span.isupper():  # no variable of the environment
            assert os.path.exists(os.path.join(HERE, span)) or set(span.split(".")) <= known, span
    assert set(re.findall(r"\w+\.py\b", text)) <= {"test_docs.py", *map(os.path.basename, scripts)}
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^":]+)"', text)
    assert all(os.path.exists(os.path.join(HERE, os.path.dirname(name), link)) for link in links), links


@pytest.mark.parametrize("name", DOCS)
def test_a_link_to_a_chapter_leads_to_its_heading(name):
    for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text_of(name)):
        target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        headings = re.findall(r"(?m)^#+ (.*)$", re.sub(FENCED, "", text_of(target)))
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, (path, anchor)  # made as GitHub makes them


def test_the_two_first_pages_are_short_and_have_the_same_results():
    results = []
    for name, heading in zip(FIRST_PAGES, ("Results", "结果")):
        assert len(text_of(name).splitlines()) <= 165
        table = re.search(rf"(?ms)^## {heading}\n.*?^(\|.*?)\n\n", text_of(name))[1]
        results.append([set(re.findall(r"\d[\d,.]*", row)) for row in table.splitlines()])
    assert results[0] == results[1]


def units_of(name):
    """The paragraphs, list items and rows of tables of a text; no blocks of code."""
    text = re.sub(FENCED, "", text_of(name).split("\n## 5. ")[-1])  # before, Chinese has remarks of its own
    units = re.split(r"\n\s*\n|\n(?=(?:[-*]|\d\.) |[|>#])", text)
    return [unit for unit in units if unit.strip()]


def count_sentences(unit):
    """The ends of sentences outside of code and quotes. English has the period before the quote's end."""
    plain = re.sub(r"`[^`]+`|\]\([^)]+\)", "X", " ".join(unit.split()))
    plain = re.sub(r"^(#+ )?\d+\. |\*|\.\.\.", "", plain)
    plain = re.sub(r'"[^"]*?([.?!]?)"|“[^”]*”', r"X\1", plain)
    return len(re.findall(r"[。？！]|[.?!]\)?(?= |$)|[:：]$", plain))


@pytest.mark.parametrize("english, chinese", PAIRS)
def test_both_languages_have_the_same_commands_headings_numbers_and_paragraphs(english, chinese):
    assert list(commands_of(english)) == list(commands_of(chinese)) != []
    texts = text_of(english), text_of(chinese)
    a, b = (re.findall(r"(?m)^(#+) ", re.sub(FENCED, "", text)) for text in texts)
    assert a == b
    a, b = (set(re.findall(r"(?a)(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)", text)) for text in texts)
    assert {n for n in a ^ b if len(n) > 2} == set()  # small ones may be words
    for a, b in zip(units_of(english), units_of(chinese), strict=True):
        assert sorted(re.findall("`[^`]+`", a)) == sorted(re.findall("`[^`]+`", b)), f"{a}\n{b}"
        assert count_sentences(a) == count_sentences(b), f"{a}\n{b}"


def test_the_tutorials_reader_finds_every_option_of_train():
    rows = re.findall(r"(?m)^\| `(\w+)` \| `(\S+)` \| (.+) \|$", text_of("docs/tutorial.zh.md"))
    source = text_of("train.py").split("given = ")[0]
    options = re.findall(r'(?m)^([a-z]\w*) = "?([^"#]+?)"?  # ', source)
    assert [(name, default) for name, default, _ in rows] == options and len(options) > 30


def test_the_answers_change_lines_of_the_code():
    code = "\n".join(map(text_of, files(".py")))
    assert all(line in code for line in re.findall(r"(?m)^-(.*)$", blocks_of("docs/answers.md", "diff")))


@pytest.mark.parametrize("name", COURSE)
def test_python_in_the_course_prints_what_stands_after_it(name):
    pairs = re.findall(r"(?ms)^```python\n(.*?)^```\n\n```\n(.*?)^```", text_of(name))
    for code, printed in pairs:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)
        assert done.stdout == printed, done.stderr
    assert len(pairs) == 3


@pytest.mark.parametrize("name", COURSE)
def test_thirty_lines_of_autograd_get_pytorchs_gradients(name):
    printed = subprocess.check_output([sys.executable, "docs/autograd.py"], text=True, cwd=HERE)
    pytorch, ours = printed.replace("PyTorch", "").replace("Value", "").splitlines()
    assert pytorch == ours
    assert f"```\n{printed}```" in text_of(name)


def test_the_smallest_model_learns_and_writes(capsys):
    main = runpy.run_path(os.path.join(HERE, "docs/minimal.py"))["main"]
    main.__globals__.update(max_iters=80, batch_size=8)
    _, _, losses = main()
    assert losses[0] > 3 and sum(losses[-5:]) / 5 < 1  # ln 31 = 3.4; how frequent each letter is: 2.8
    words = set(" ".join(capsys.readouterr().out.splitlines()[-8:]).split())
    assert words >= {"has", "a", "likes", "the"}


def test_the_chinese_pictures_are_those_of_today_in_chinese():
    translate = runpy.run_path(os.path.join(HERE, "docs/chinese.py"))["translate"]
    pictures = [path for path in files(".svg") if not path.endswith(".zh.svg")]
    for path in pictures:
        translated = translate(text_of(path))
        assert translated == text_of(path.replace(".svg", ".zh.svg")), f"run docs/chinese.py: {path}"
        assert re.search(r">[^<]*[\u4e00-\u9fff][^<]*</text>", translated), path
        assert "@media (prefers-color-scheme: dark)" in translated, path
    assert len(pictures) == 15
