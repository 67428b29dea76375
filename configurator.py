"""
What the scripts of the course share: options from the command line, errors in one sentence, and files
that are written completely or not at all.

The options of a script are its lower-case module-level globals. After them stands

    given = override(globals())

and from then on `--key=value` on the command line has replaced the global `key`. The type is that of the
default, and the comment on its line is the help text. What a comment has before its colon is checked: words
joined by " | " (PATH among them stands for any file or folder that exists), or bounds.

    init_from = "scratch"  # scratch | resume | PATH: where the model comes from
    dropout = 0.0  # at least 0, below 1: probability

The idea is nanoGPT's configurator. That one runs the options with `exec`; here argparse reads them.
"""

import argparse
import contextlib
import functools
import importlib
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
    return {k: v for k, v in scope.items() if k.islower() and type(v) in (bool, int, float, str)}


def override(scope, commands=()):
    """
    Replace the options in `scope` (a script's globals()) by those of the command line. Returns the ones that
    were given, {name: value}.

    With `commands` (names of functions in scope), the first word must be one of them; it is returned as
    "command". A mistake ends the script with exit code 2. From here on an InputError ends it with its
    sentence and exit code 1; every other exception keeps its traceback.
    """
    sys.excepthook = print_input_error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Jupyter's has none
            stream.reconfigure(errors="replace")  # not every terminal has every character of a story
    comments = read_comments(scope)
    parser = argparse.ArgumentParser(
        usage=f"%(prog)s {'COMMAND ' if commands else ''}[--key=value ...]    (--help lists the options)",
        description=scope["__doc__"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if commands:
        parser.add_argument("command", choices=commands, metavar=" | ".join(commands))
    for key, value in options(scope).items():
        comment = comments.get(key, "")
        parser.add_argument(
            f"--{key}",
            type=functools.partial(parse_value, default=value, comment=comment),
            default=argparse.SUPPRESS,
            **({"nargs": "?", "const": True} if type(value) is bool else {}),  # --key alone is True
            metavar=repr(value).replace("%", "%%"),
            help=comment.replace("%", "%%"),
        )
    given = vars(parser.parse_args())
    scope.update((k, v) for k, v in given.items() if k != "command")
    return given


def read_comments(scope):
    """{option: the comment on its line} of a script."""
    with open(scope["__file__"], encoding="utf-8") as f:
        return dict(re.findall(r"^(\w+) = .*?  # (.*)$", f.read(), re.MULTILINE))


def is_in_bounds(scope, name, value):
    """Whether the command line would take this number for an option."""
    try:
        parse_value(str(value), value, read_comments(scope).get(name, ""))
    except argparse.ArgumentTypeError:
        return False
    return True


def parse_value(text, default, comment):
    """An option's text as a value of its default's type. ArgumentTypeError says what the option expects."""
    kind = type(default)
    if kind in (int, float):
        bounds = re.match(r"(at least|above) [^:]*", comment)
        bounds = bounds.group() if bounds else ""
        with contextlib.suppress(ValueError):
            value = kind(text)
            limits = re.findall(rf"({'|'.join(BOUNDS)}) ([^ ,]+)", bounds)
            if math.isfinite(value) and all(BOUNDS[word](value, float(limit)) for word, limit in limits):
                return value
        expected = f"a {'whole ' * (kind is int)}number{', ' * bool(bounds)}{bounds}"
        raise argparse.ArgumentTypeError(f"expects {expected}, not {text!r}")
    listed = re.match(r"\S+( \| \S+)+", comment)
    words = listed.group().rstrip(":,;").split(" | ") if listed else []
    if kind is bool:
        words = ["True", "False"]
    for word in words:
        if text.lower() == word.lower() and word != "PATH":  # --compile=True is "true"
            return word == "True" if kind is bool else word
    if not words or text == default or ("PATH" in words and os.path.exists(text)):
        return text
    raise argparse.ArgumentTypeError(f"expects {' | '.join(words)}, not {text!r}")


def print_input_error(error_type, error, trace):
    """sys.excepthook of the scripts."""
    if error_type.__name__ == "OutOfMemoryError":  # torch's
        error = "out of memory: a smaller batch needs less"
    elif isinstance(error, OSError) and error.strerror:  # a folder in place of a file, a full disk
        error = f"{error.filename or 'the system'}: {error.strerror}"
    elif not issubclass(error_type, (InputError, KeyboardInterrupt)):
        return sys.__excepthook__(error_type, error, trace)
    print(f"{os.path.basename(sys.argv[0])}: {str(error) or 'interrupted'}", file=sys.stderr)


def first_line(error):
    """The first line of a library's error message, or the error's name where there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def import_optional(package, why):
    """The module of an optional package. InputError says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.split(".")[0]
        raise InputError(f"{why} needs the package {name}: pip install {name}") from None


def cpu_count():
    """How many processors this process may use, but 16 at most: a pool's process may hold a GB."""
    affinity = getattr(os, "sched_getaffinity", lambda pid: range(os.cpu_count() or 1))  # Linux has it
    return min(16, len(affinity(0)))


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """
    Open `path`.tmp, flush it to the disk when the block ends, and rename it to `path` only then. After an
    exception, a full disk or a power cut, `path` is the old file or the new one, never half of one.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def read_json(path, expected=dict):
    """The value in a .json file, by default an object, {name: value}. InputError where it is none."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            value = json.load(f)
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} is broken: {first_line(error)}") from None
    if not isinstance(value, expected):
        raise InputError(f"{path} is broken: it holds a {type(value).__name__}, not a {expected.__name__}")
    return value


def write_json(path, value):
    """Write a value as a .json file, completely or not at all."""
    with atomic_write(path) as f:
        json.dump(value, f, ensure_ascii=False, indent=None if isinstance(value, list) else 1)
