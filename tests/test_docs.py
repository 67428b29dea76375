"""The texts: what they say of files, commands and options is so."""

import ast
import os
import re
import shlex

import pytest

from tests.fixtures import HERE

pytest_plugins = ["tests.fixtures"]

EXERCISES = {"dpi", "dpy"}  # a knob that the reader adds to plot.py, and misspells
OTHERS = {"pytest", "pip", "venv"}  # modules that are not ours
DOCS = (
    "README.md",
    "docs/README.zh.md",
    "docs/course.md",
    "docs/course.zh.md",
    "docs/answers.md",
    "docs/CONTRIBUTING.md",
)


def text_of(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return f.read()


def commands_of(text):
    """Every command with one of our scripts or modules, in code blocks and between backticks, as words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`((?:python|torchrun|accelerate|bash) [^`\n]+)`", text)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + inline
    found = [shlex.split(line, comments=True) for line in lines]
    return [[w for w in words if w not in ("$", "|")] for words in found if script_of(words)[0]]


def script_of(words):
    """
    ["python", "-m", "extras.plot", "--help"] -> ("extras/plot.py", ["--help"]): what a command runs, and what
    it gives it; ("", []) where that is nothing of ours.
    """
    for i, word in enumerate(words):
        if word.endswith(".py"):
            return word, words[i + 1 :]
        if i and words[i - 1] == "-m" and word not in OTHERS:
            return word.replace(".", "/") + ".py", words[i + 1 :]
    return "", []


def knobs_of(script):
    tree = ast.parse(text_of(script))
    names = {
        n.targets[0].id: n.value
        for n in tree.body
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    }
    verbs = ast.literal_eval(names["VERBS"]) if "VERBS" in names else ()
    return set(names), verbs


@pytest.mark.parametrize("name", DOCS)
def test_the_commands_in_a_text_exist(name):
    commands = commands_of(text_of(name))
    assert commands
    for words in commands:
        script, rest = script_of(words)
        assert os.path.exists(os.path.join(HERE, script)), words
        if script == "test_all.py":
            continue
        knobs, verbs = knobs_of(script)
        if verbs:
            assert rest[:1] == ["--help"] or rest[0] in verbs, words
        for word in rest:
            key = word[2:].partition("=")[0] if word.startswith("--") else "help"
            assert key in knobs | {"help"} | EXERCISES, (words, key)


def test_a_command_is_known_by_its_file_or_its_module():
    found = commands_of("`python train.py --dim=64` `python -m pytest -q` `torchrun -m extras.gone --y`")
    assert [script_of(words) for words in found] == [("train.py", ["--dim=64"]), ("extras/gone.py", ["--y"])]
    for name in ("README.md", "docs/course.md"):
        assert {"extras/export.py", "train.py"} <= {script_of(c)[0] for c in commands_of(text_of(name))}


@pytest.mark.parametrize("name", DOCS)
def test_the_files_that_a_text_names_exist(name):
    text = text_of(name)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'(?:src|srcset)="([^":]+)"', text)
    assert links
    for link in links:
        assert os.path.exists(os.path.join(HERE, os.path.dirname(name), link)), link


@pytest.mark.parametrize(
    "english, chinese", [("README.md", "docs/README.zh.md"), ("docs/course.md", "docs/course.zh.md")]
)
def test_both_languages_say_the_same(english, chinese):
    a, b = text_of(english), text_of(chinese)
    assert commands_of(a) == commands_of(b)
    levels = [
        re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", t, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
        for t in (a, b)
    ]
    assert levels[0] == levels[1]
    numbers = [
        set(re.findall(r"(?<![A-Za-z0-9_.,])\d+(?:,\d{3})*(?:\.\d+)?(?![A-Za-z0-9_])", t)) for t in (a, b)
    ]
    assert {n for n in numbers[0] ^ numbers[1] if len(n) > 2} == set()  # small ones may be words
