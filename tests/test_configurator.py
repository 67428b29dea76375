"""configurator.py: options, errors, and files that are written completely or not at all."""

import io
import re
import subprocess
import sys

import pytest

from configurator import override
from tests.fixtures import HERE


@pytest.fixture
def script(tmp_path):
    """script("--rate=1") runs a small script and returns its output; commands="sing" gives it a command."""

    def run_script(*args, commands="", code=0):
        (tmp_path / "script.py").write_text(
            f"import sys\nsys.path.insert(0, {HERE!r})\nfrom configurator import InputError, override\n"
            "rate = 0.5  # the speed\n"
            "steps = 10\n"
            "share = 0.5  # above 0, at most 1: of all\n"
            "count = 3  # at least 1: things\n"
            "fast = False\n"
            "name = 'x'\n"
            "dtype = 'float32'  # float32 | bfloat16: of numbers\n"
            "start = 'scratch'  # scratch | PATH: from where\n"
            f"given = override(globals(), {commands.split()})\n"
            "if name == 'missing': raise InputError('there is no story of that name')\n"
            "if name == 'bug': print([][0])\n"
            "print(given, all(globals()[k] == v for k, v in given.items() if k != 'command'))\n"
        )
        done = subprocess.run([sys.executable, tmp_path / "script.py", *args], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run_script


def test_options_take_their_type_from_the_default_and_help_is_the_comment_on_their_line(script):
    numbers = ("--rate=1", "--steps", "3", "--fast=true")
    said = script(*numbers, "--name=a=b c", "--dtype=BFloat16", f"--start={HERE}")
    want = {"rate": 1.0, "steps": 3, "fast": True, "name": "a=b c", "dtype": "bfloat16", "start": HERE}
    assert said.strip() == f"{want} True"
    assert "'share': 1.0" in script("--share=1") and "'count': 1" in script("--count=1")
    assert "'fast': True" in script("--fast") and "'fast': False" in script("--fast=False")
    said = script("--help")
    assert re.search(r"--rate 0.5\s+the speed", said) and re.search(r"--steps 10", said)
    assert "--__" not in said  # __file__ and __doc__ are lower-case texts, too


@pytest.mark.parametrize("word, says", [
    ("--rat=1", "unrecognized arguments: --rat=1"),
    ("--count=" + "9" * 400, "argument --count: expects a whole number, at least 1"),
    ("--rate=nan", "argument --rate: expects a number"),
    ("--share=0", "argument --share: expects a number, above 0, at most 1, not '0'"),
    ("--fast=maybe", "argument --fast: expects True | False"),
    ("--dtype=int8", "argument --dtype: expects float32 | bfloat16, not 'int8'"),
    ("--start=/nowhere", "argument --start: expects scratch | PATH"),
    ("--steps", "argument --steps: expected one argument"),
    ("--name=\udcff", "argument --name: expects a text in UTF-8"),  # bytes of a terminal in Latin-1 or GBK
])  # fmt: skip
def test_a_mistaken_option_is_named_with_exit_code_2(script, word, says):
    said = script(word, code=2)
    assert said.startswith("usage: script.py") and says in said.splitlines()[-1]


def test_the_first_word_is_the_command(script):
    assert "{'command': 'sing', 'rate': 2.0}" in script("sing", "--rate=2", commands="sing cry")
    assert "invalid choice: 'laugh'" in script("laugh", commands="sing cry", code=2)


def test_jupyters_streams_have_no_reconfigure(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # override puts another one there
    assert override({"rate": 0.5, "__file__": __file__, "__doc__": ""}, words=["--rate=2"]) == {"rate": 2}


def test_what_a_user_got_wrong_is_one_sentence_and_a_bug_keeps_its_traceback(script):
    assert script("--name=missing", code=1) == "script.py: there is no story of that name\n"
    said = script("--name=bug", code=1)
    assert "Traceback" in said and said.endswith("IndexError: list index out of range\n")
