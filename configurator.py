"""
What the scripts share: options (as nanoGPT's, but no config file), errors in one sentence, and whole files.

The options of a script are its lower-case globals: `given = override(globals())` replaces `key` by that of
`--key=value`. The type is the default's; the comment on its line is the help. What it has before a colon is
checked: "at least 0, below 1", or words joined by " | ", of which PATH is any file or folder that exists.
"""

import argparse
import contextlib
import functools
import json
import math
import operator
import os
import re
import sys

BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


class InputError(ValueError):
    """What a user can get wrong. The message is one sentence that names what is wrong, and where."""


def options(scope):
    """The options of a script, {name: value}: the lower-case globals that are numbers, texts or bools."""
    return {k: v for k, v in scope.items() if k[0].islower() and isinstance(v, (int, float, str))}


def override(scope, commands=(), words=None, source=None):
    """Replace the options in `scope` by those of the command line, or of `words`; returns those given."""
    sys.excepthook = print_input_error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Jupyter's have none
            stream.reconfigure(errors="replace")  # not every terminal has every character of a story
    with open(scope["__file__"], encoding="utf-8") as f:
        comments = dict(re.findall(r"^(\w+) = .*?  # (.*)$", f.read(), re.MULTILINE))
    parser = argparse.ArgumentParser(source, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.description = scope["__doc__"]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = f"%(prog)s {'COMMAND ' if commands else ''}[--key=value ...]    (--help lists the options)"
    if commands:  # the first word is one of them
        parser.add_argument("command", choices=commands, metavar=" | ".join(commands))
    for key, value in options(scope).items():
        note = comments.get(key, "")
        parse = functools.partial(parse_value, default=value, comment=note)
        flag = {"nargs": "?", "const": True} if type(value) is bool else {}  # --key alone is True
        parser.add_argument(f"--{key}", type=parse, metavar=repr(value), help=note.replace("%", "%%"), **flag)
    given = vars(parser.parse_args(words))
    scope.update((k, v) for k, v in given.items() if k != "command")
    return given


def parse_value(text, default, comment):
    """An option's text as a value of its default's type. ArgumentTypeError says what the option expects."""
    kind = type(default)
    expected = "True | False" if kind is bool else comment.partition(":")[0]
    if kind in (int, float):
        limits = re.findall(rf"({'|'.join(BOUNDS)}) ([^ ,]+)", expected)
        with contextlib.suppress(ValueError, OverflowError):
            value = kind(text)
            if math.isfinite(value) and all(BOUNDS[word](value, float(limit)) for word, limit in limits):
                return value
        number = "a whole number" if kind is int else "a number"
        expected = f"{number}, {expected}" if limits else number
    elif re.search("[\ud800-\udfff]", text):  # bytes of another encoding
        expected = "a text in UTF-8"
    else:
        words = expected.split(" | ") if " | " in expected else []
        for word in words:
            if text.lower() == word.lower() and word != "PATH":  # --compile=True is "true"
                return word == "True" if kind is bool else word
        if not words or text == default or ("PATH" in words and os.path.exists(text)):
            return text
    raise argparse.ArgumentTypeError(f"expects {expected}, not {text!r}")


def print_input_error(error_type, error, trace):
    if re.search("MemoryError|can't allocate memory", repr(error)):  # Python's and CUDA's, a CPU's
        error = "out of memory: a smaller batch or model needs less"
    elif isinstance(error, OSError) and error.strerror:  # a folder in place of a file, a full disk
        error = f"{error.filename or 'the system'}: {error.strerror}"
    elif not issubclass(error_type, (InputError, KeyboardInterrupt)):
        return sys.__excepthook__(error_type, error, trace)
    print(f"{os.path.basename(sys.argv[0])}: {str(error) or 'interrupted'}", file=sys.stderr)
    if in_chinese() and error_type is not KeyboardInterrupt:
        print("常见报错的中文解释：docs/tutorial.zh.md", file=sys.stderr)


def in_chinese():
    """Whether the terminal is Chinese: what counts is the first of these variables that is set."""
    return next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "").startswith("zh")


def first_sentence(error):
    """What a library's error message says first, or the error's name where there is no message."""
    text = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return re.split(r"(?<=\w\w)\. ", text)[0][:300] or type(error).__name__


@contextlib.contextmanager
def as_input_error(sentence):
    """Turn an error in this block, of a library or of damaged data, into an InputError: the sentence, why."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, InputError)
        raise error if ours else InputError(f"{sentence}: {first_sentence(error)}") from None


def cpu_count():
    """How many processors this process may use, but 16 at most: a pool's process may hold a GB."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open `path`.tmp, and rename it to `path` when all of it is on the disk: never is `path` half a file."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # torch.save hides what a full disk says
        raise error.__context__ or error from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def read_json(path, expected=dict):
    """The value in a .json file, by default an object, {name: value}. InputError where it is none."""
    with as_input_error(f"{path} is broken"), open(path, encoding="utf-8-sig") as f:
        value = json.load(f)
        if not isinstance(value, expected):
            raise ValueError(f"it holds a {type(value).__name__}, not a {expected.__name__}")
        return value


def write_json(path, value):
    with atomic_write(path) as f:
        json.dump(value, f, ensure_ascii=False, indent=None if isinstance(value, list) else 1)
