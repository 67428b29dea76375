"""
The files that people bring: stories, chunks, conversations, prompts, checkpoints. All of them are read here.

Text is UTF-8, with or without a byte order mark. Anything else is refused by its name: text in a wrongly
guessed encoding would be learned without a word. A value that cannot be used is left out, counted and named.
"""

import collections
import io
import itertools
import json
import re
import sys
import warnings

import torch
from tqdm import tqdm

from configurator import InputError, first_line
from model import Transformer, load_checkpoint

PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"PAR1": "Parquet", b"%PDF": "PDF",
}  # fmt: skip
END_OF_TEXT = "<|endoftext|>"
MAX_REPORTED = 20  # values left out that are named, for each reason; those after them are only counted


def open_text(path, encoding="utf-8", start=0, end=None):
    """A file, or its bytes from start to end, as a text stream; bytes of no character become surrogates."""
    try:
        file = open(path, "rb")
        head = file.peek(512)[:512]
        if end is not None:
            file.seek(start)
            file = io.BytesIO(file.read(end - start))
        with_mark = "utf-8-sig" if encoding == "utf-8" else encoding  # drops a byte order mark
        stream = io.TextIOWrapper(file, with_mark, errors="surrogateescape")
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except (OSError, LookupError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    packed = [name for magic, name in PACKED.items() if head.startswith(magic)]
    if packed or head[257:262] == b"ustar":
        raise InputError(f"{path} is not text, but {(packed or ['tar'])[0]}: unpack or convert it first")
    return stream


def check_encoding(text, path, encoding="utf-8", strict=True):
    """
    InputError where a text was not in this encoding. It names Windows' UTF-16 and China's GB18030 (GBK). Not
    strict: only if it seems to be one of them, and not UTF-8 with a broken byte.
    """
    if not re.search("[\0\udc80-\udcff]", text):
        return
    data = text.encode("utf-8", "surrogateescape")
    chinese = len(re.findall("[\u4e00-\u9fff]", data.decode("gb18030", "ignore")))
    valid = len(re.findall("[^\0-\x7f\udc80-\udcff]", text))
    guess = "gb18030" if chinese > 4 * valid else ""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data.count(0) * 4 > len(data):
        guess = "utf-16"
    if guess or (strict and re.search("[\udc80-\udcff]", text)):
        seems = f", but seems to be {guess}: convert it, or give --encoding={guess}" if guess else ""
        raise InputError(f"{path} is not {encoding}{seems}")


def read_text(path, encoding="utf-8"):
    """The text of a file. InputError where it is not in that encoding."""
    with open_text(path, encoding) as f:
        text = f.read()
    check_encoding(text, path, encoding)
    return text


def read_values(path, convert, start=0, end=None, limit=None, encoding="utf-8", lines=None):
    """
    convert(value) for each value in a file; those for which it raises a ValueError are left out. The values
    are those of a .jsonl or .ndjson, one a line; the items of a .json with an array, or its lines; and the
    texts of any other file, between which <|endoftext|> stands.

    start, end   the part of a file of lines to read, in bytes (prepare_data.split_file)
    limit        read only so many values
    lines        lines of JSON to read instead of those in the file
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
            if left_out[reason] <= MAX_REPORTED:
                after = f" after byte {start:,}" if start else ""
                tqdm.write(f"{path}, {place}{after}: {reason}", file=sys.stderr)
        else:
            yield converted
    if left_out:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in left_out.most_common())
        tqdm.write(f"{path}: left out: {reasons}")


def find_values(path, start, end, encoding):
    """(place, value) of each value in a file; a ValueError instead of a value that is no JSON."""
    ending = path.lower().rpartition(".")[2]
    if ending not in ("json", "jsonl", "ndjson"):
        texts = read_text(path, encoding).split(END_OF_TEXT)
        yield from ((f"text {i}", text) for i, text in enumerate(texts, 1) if text.strip())
        return
    with open_text(path, encoding, start, end) as file:
        lines = (line for line in file if not line.isspace())
        first = next(lines, "")
        if first.strip() == "[" or (ending == "json" and first.lstrip().startswith("[")):
            text = first + file.read()
            check_encoding(text, path, encoding)
            try:
                yield from ((f"item {i}", item) for i, item in enumerate(json.loads(text), 1))
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
        try:
            value = json.loads(line)
            if re.search("[\udc80-\udcff]", line):
                value = ValueError("not UTF-8")
        except json.JSONDecodeError as error:
            value = ValueError(error.msg)  # without the place, so that it can be counted
        except (RecursionError, ValueError) as error:  # a number of more than 4,300 digits
            value = ValueError(f"too deep or too long: {first_line(error)}")
        if not line.isspace():
            yield f"line {i}", value


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
    try:
        checkpoint = load_checkpoint(path, mmap)
    except FileNotFoundError:
        raise InputError(f"no checkpoint {path}: train.py writes one") from None
    except Exception as error:  # of torch, pickle, zipfile and the disk
        raise InputError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from None
    try:
        if "transformer.wte.weight" in checkpoint["model"]:
            raise ValueError("it is nanoGPT's, a GPT-2")
        with torch.device("meta"), warnings.catch_warnings():  # takes no memory, and copies nothing
            warnings.simplefilter("ignore")
            Transformer.from_checkpoint(checkpoint)
        if not isinstance(checkpoint.get("tokenizer") or {}, dict):
            raise TypeError("the tokenizer is none")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no model of this kind: {type(error).__name__}: {detail}") from None
    return checkpoint
