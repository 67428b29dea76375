"""
The files that people bring: stories, chunks, conversations, prompts, checkpoints. All of them are read here.

Text is UTF-8, with or without a byte order mark. Anything else is refused by its name (extras/foreign.py). A
value that cannot be used is left out, counted and named.
"""

import collections
import io
import itertools
import json
import os
import re
import sys
import warnings

import torch
from tqdm import tqdm

from configurator import InputError, as_input_error
from model import Transformer, load_checkpoint

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
END_OF_TEXT = "<|endoftext|>"
MAX_REPORTED = 20  # reasons, and values for each of them, that are named; others are only counted


def open_text(path, encoding="utf-8", start=0, end=None):
    """A file, or its bytes from start to end, as a text stream; bytes of no character become surrogates."""
    if not os.path.exists(path):
        raise InputError(f"no file {path}")
    file = open(path, "rb")
    if encoding != "utf-8":
        from extras.foreign import decode

        return io.StringIO(decode(file.read(), path, encoding))
    check_encoding(file.peek(512)[:512].decode("utf-8", "surrogateescape"), path, strict=False)
    if end is not None:
        file.seek(start)
        file = io.BytesIO(file.read(end - start))
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")


def check_encoding(text, path, strict=True):
    """InputError where what was read as UTF-8 is something else. strict=False lets a broken byte pass."""
    if re.search("[\0\udc80-\udcff]", text):
        from extras.foreign import refuse_bytes

        refuse_bytes(text.encode("utf-8", "surrogateescape"), path, strict)


def read_text(path, encoding="utf-8"):
    """The text of a file. InputError where it is not in that encoding."""
    with open_text(path, encoding) as f:
        text = f.read()
    check_encoding(text, path)
    return text


def read_values(path, convert, start=0, end=None, limit=None, encoding="utf-8", lines=None):
    """
    convert(value) for each value in a file; those for which it raises a ValueError are left out. The values
    are those of a .jsonl or .ndjson, one a line; the items of a .json with an array, or its lines; and the
    texts of any other file, between which <|endoftext|> stands. start and end are bytes, limit a number of
    values, lines what is read instead of the file. A file that begins with {" is JSON, whatever its ending.
    """
    left_out = collections.Counter()  # reason: how many
    values = find_values(path, start, end, encoding) if lines is None else parse_lines(path, lines)
    for place, value in itertools.islice(values, limit):
        try:
            if isinstance(value, ValueError):
                raise value
            converted = convert(value)
        except ValueError as error:
            reason = str(error)
            left_out[reason] += 1
            if left_out[reason] <= MAX_REPORTED and len(left_out) <= MAX_REPORTED:
                after = f" after byte {start:,}" if start else ""
                tqdm.write(f"{path}, {place}{after}: {reason}", file=sys.stderr)
        else:
            yield converted
    if left_out:
        reasons = [f"{reason} ({count:,})" for reason, count in left_out.most_common(MAX_REPORTED)]
        others = len(left_out) - len(reasons)
        more = f", and for {others:,} other reasons" if others else ""
        tqdm.write(f"{path}: left out: {', '.join(reasons)}{more}")


def find_values(path, start, end, encoding):
    """(place, value) of each value in a file; a ValueError instead of a value that is no JSON."""
    with open_text(path, encoding, start, end) as file:
        first = next((line for line in file if not line.isspace()), "")
        begin = first.strip()
        if not path.lower().endswith(JSON_ENDINGS) and not begin.startswith(('{"', '[{"')):
            texts = read_text(path, encoding).split(END_OF_TEXT)
            yield from ((f"text {i}", text) for i, text in enumerate(texts, 1) if text.strip())
            return
        if begin in ("[", "{") or (begin[:1] == "[" and not path.lower().endswith((".jsonl", ".ndjson"))):
            text = first + file.read()
            check_encoding(text, path)
            try:
                value = json.loads(text)
                items = value if isinstance(value, list) else [value]
                yield from ((f"item {i}", item) for i, item in enumerate(items, 1))
                return
            except (ValueError, RecursionError) as error:
                if getattr(error, "msg", "") != "Extra data":  # which comes after a first line of JSON
                    raise InputError(f"{path} is broken: {error}") from None
        file.seek(0)
        yield from parse_lines(path, file)


def parse_lines(path, lines):
    """("line 7", value) of each line that is not blank; a ValueError instead of a value that is no JSON."""
    for i, line in enumerate(lines, 1):
        check_encoding(line, f"{path}, line {i},", strict=False)
        if not line.isspace():
            yield f"line {i}", parse(line)


def parse(line):
    """The value of a line of JSON, or a ValueError that says what is wrong, not where: it is counted."""
    if re.search("[\udc80-\udcff]", line):
        return ValueError("not UTF-8")
    try:
        return json.loads(line.removeprefix("\ufeff"))  # of a file with a mark that was joined
    except (ValueError, RecursionError) as error:
        return ValueError(getattr(error, "msg", "nested too deeply, or a number too long"))


def get_text(item, key="text"):
    """item[key], or an item that is a text itself. ValueError if there is no text, or a blank one."""
    text = item.get(key) if isinstance(item, dict) else item
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no {key}")
    if re.search("[\ud800-\udfff]", text):  # JSON can spell one
        raise ValueError("half a surrogate pair, which is no character")
    return text


def read_checkpoint(path, mmap=False):
    """model.load_checkpoint. InputError says in a sentence why a file is no checkpoint of this model."""
    if not os.path.exists(path):
        raise InputError(f"no checkpoint {path}: train.py writes one")
    with as_input_error(f"{path} is no checkpoint (extras.export converts other formats), or damaged"):
        checkpoint = load_checkpoint(path, mmap)
    with as_input_error(f"{path} holds no model of this kind"):
        if "model_args" not in checkpoint or "tok_embeddings.weight" not in checkpoint.get("model", ()):
            from extras.foreign import find_model

            checkpoint = find_model(checkpoint, path)
        if not all(w.is_floating_point() for w in checkpoint["model"].values()):
            raise TypeError("its weights are integers or complex numbers")
        with torch.device("meta"), warnings.catch_warnings():  # takes no memory, and copies nothing
            warnings.simplefilter("ignore")
            Transformer.from_checkpoint(checkpoint)
        if not isinstance(checkpoint.get("tokenizer") or {}, dict):
            raise TypeError("its tokenizer is none")
        if not all(type(i) is int and 0 <= i < 1 << 31 for i in checkpoint.get("stop_ids", [])):
            raise TypeError("its stop_ids are no token ids")
    return checkpoint
