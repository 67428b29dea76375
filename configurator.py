"""
What every script of the course shares: knobs from the command line, errors in one line, files that are
whole or absent.

A script's hyperparameters are its lower-case module-level globals. Right under them stands

    config = override(globals())

and from then on `--key=value` (or `--key value`) on the command line has replaced the global `key`. There
is nothing to declare: the type is the default's, and the comment on the knob's line is its help text and,
where it begins with words joined by " | ", the list of what it takes:

    dtype = "bfloat16"  # float32 | bfloat16 | float16: what the matrix products run in
    init_from = "scratch"  # scratch | resume | PATH: where the weights come from

Here PATH stands for any file or folder that exists. `--help` prints every knob with its default and its
comment. The idea is nanoGPT's configurator, without its `exec`: what arrives from outside is data and
never runs.
"""

import ast
import contextlib
import difflib
import errno
import glob
import io
import math
import multiprocessing.connection
import os
import re
import sys
import threading
import tokenize
import traceback

given = set()  # the knobs that the command line has set: what was not, a script may take from elsewhere


def override(scope, verbs=(), argv=None):
    """
    Replace the knobs in `scope` (a script's globals()) by what the command line says; return them all as
    a dict.

    With `verbs` (names of functions in scope) the first word must be one of them, and stands in the dict
    as "verb". Mistakes end the process with exit code 2 and one line on stderr. From here on, bad input
    does too: see one_line_errors.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    sys.excepthook = one_line_errors
    for stream in (sys.stdout, sys.stderr):  # a terminal set to ASCII cannot print every story
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    knobs = {
        k: v for k, v in scope.items() if k.islower() and k[0] != "_" and type(v) in (bool, int, float, str)
    }
    comments = read_comments(scope.get("__file__"))
    if "--help" in argv or "-h" in argv:
        print_help(scope, knobs, comments, verbs)
        raise SystemExit(0)

    config = {}
    if verbs:
        if not argv or argv[0] not in verbs:
            hint = nearest(argv[0], verbs) if argv else ""
            refuse(f"the first word must be one of: {' '.join(verbs)}{hint}")
        config["verb"] = argv.pop(0)
    while argv:
        word = argv.pop(0)
        if not word.startswith("--"):
            refuse(f"stray word {word!r}: knobs are given as --key=value (see --help)")
        key, equals, text = word[2:].partition("=")
        if key not in knobs:
            refuse(f"unknown knob --{key}{nearest(key, knobs) or ' (see --help)'}")
        if not equals:  # --key value; a bool may also stand alone, as --key
            if type(knobs[key]) is bool and not (argv and argv[0].lower() in ("true", "false")):
                text = "True"
            elif argv:
                text = argv.pop(0)
            else:
                refuse(f"--{key} expects {a(type(knobs[key]))} behind it")
        given.add(key)
        scope[key] = parse(key, text, knobs[key], comments.get(key, ""))
    return config | {k: scope[k] for k in knobs}


def parse(key, text, default, comment):
    """A knob's text as a value of its default's type; ends the process where it is not one."""
    kind = type(default)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            refuse(f"--{key} expects True or False, not {text!r}")
        return text.lower() == "true"
    if kind is not str:
        try:
            value = kind(text)
        except ValueError:
            refuse(f"--{key} expects {a(kind)}, not {text!r}")
        if not math.isfinite(value):
            refuse(f"--{key} expects a finite number, not {text!r}")
        return value
    known = legal_values(comment)
    if not known or text == default:
        return text
    for word in known:
        if text.lower() == word.lower() and word != "PATH":  # --compile=True is "true"
            return word
    if "PATH" in known and os.path.exists(text):
        return text
    said = ["a path that exists" if word == "PATH" else word for word in known]
    refuse(f"--{key} expects one of {', '.join(said)}, not {text!r}{nearest(text, known)}")


def legal_values(comment):
    """The words joined by " | " at a comment's beginning: 'a | PATH: ...' -> ['a', 'PATH']."""
    found = re.match(r"\S+?(?: \| \S+?)+(?=[:,;]? |[:,;]?$)", comment)
    return found.group().split(" | ") if found else []


def read_comments(path):
    """The comment on the line of each module-level assignment in a source file: {name: comment}."""
    if not path or not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as f:
        source = f.read()
    lines = {
        t.start[0]: t.string.lstrip("# ")
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }
    return {
        node.targets[0].id: lines.get(node.end_lineno, "")
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def print_help(scope, knobs, comments, verbs):
    if scope.get("__doc__"):
        print(scope["__doc__"].strip() + "\n")
    for verb in verbs:
        print(f"  {verb:<16} {(scope[verb].__doc__ or '').strip().splitlines()[0]}")
    print("\nknobs, as --key=value:")
    for key, value in knobs.items():
        print(f"  --{key}={value!r:<{max(1, 30 - len(key))}} {comments.get(key, '')}")


def nearest(word, known):
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def a(kind):
    return {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[kind]


def refuse(message):
    """End the process because of a mistake on the command line: one line, exit code 2."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    raise SystemExit(2)


# --------------------------------------------------------------------------------------------------------
# errors in one line


def one_line_errors(kind, error, trace):
    """
    sys.excepthook of the scripts. ValueError and OSError are how our files say that what they were given
    is wrong: one line names what and where, and TRACEBACK=1 in the environment shows the rest. Anything
    else is a bug of ours and keeps its traceback. The exit code is 1 in either case.
    """
    if issubclass(kind, (ValueError, OSError)) and not os.environ.get("TRACEBACK"):
        print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(error).split())}", file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        traceback.print_exception(kind, error, trace)


def first_line(error) -> str:
    """What a library's error says first, or is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def need(package, why):
    """Import and return an optional package, or say how to install it."""
    try:
        return __import__(package)
    except ImportError:
        raise ValueError(f"{why} needs the package {package}: pip install {package}") from None


def end_with_parent():
    """
    Have a process of a pool end when the one that started it is killed: it would wait for ever, or go on
    with a shard that the next run writes too.
    """
    def watch():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --------------------------------------------------------------------------------------------------------
# files that are whole or absent


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """
    Open a file beside `path`, flush it to the disk when the block ends, and only then rename it to
    `path`. Whatever happens on the way (an exception, a full disk, a power cut), `path` is the old file
    or the new one, never half of one. What a killed process leaves behind is `path.tmp`; the next write
    replaces it, and remove_leftovers() clears it away. Not promised: that two processes may write one
    `path` at the same time. OSError names the path where the disk is full.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{path}.tmp"
    try:
        with open(beside, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not error.filename:
            raise OSError(error.errno, error.strerror, path) from None
        raise
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def remove_leftovers(folder):
    """Delete the temporary files that a killed process left in a folder."""
    for path in glob.glob(os.path.join(glob.escape(folder), "*.tmp")):
        os.remove(path)
