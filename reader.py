"""
The files that people bring: stories, chunks, conversations, prompts. All of them are read here.

Text is UTF-8, with or without a byte order mark. Anything else is refused by its name: text in a wrongly
guessed encoding would be learned without a word. A value that cannot be used is left out, counted and named.
"""

import codecs
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

from configurator import InputError, first_line
from model import Transformer, load_checkpoint

PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"PAR1": "Parquet", b"%PDF": "PDF",
}  # fmt: skip
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
BOMS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
END_OF_TEXT = "<|endoftext|>"
MAX_REPORTED = 20  # values left out that are named, for each reason; those after them are only counted


def open_text(path, encoding="utf-8"):
    """A file, open for reading bytes, after its byte order mark. InputError where it is no text in UTF-8."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    head = file.peek(512)[:512]
    packed = "tar" if head[257:262] == b"ustar" else None
    packed = next((name for magic, name in PACKED.items() if head.startswith(magic)), packed)
    if packed:
        raise InputError(f"{path} is not text, but {packed}: unpack or convert it first")
    if encoding != "utf-8":
        return io.BytesIO(decode(file.read(), path, encoding).encode("utf-8"))
    if guess_encoding(head).startswith("utf-"):
        decode(file.read(), path)  # InputError
    file.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)
    return file


def decode(data, path, encoding="utf-8"):
    """The text of bytes. InputError names the encoding that they seem to be in."""
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
        if is_utf8(data, encoding):
            raise InputError(f"{path} is utf-8, not {encoding}: leave out --encoding")
        if text.count("\0") * 10 <= len(text):
            return text
        problem = "many characters are zero"
    except LookupError:
        raise InputError(f"--encoding={encoding}: Python knows no such encoding") from None
    except UnicodeError as error:
        problem = str(error)
    guess = guess_encoding(data)
    seems = f", but seems to be {guess}" if guess else ""
    advice = f"convert it, or where there is that option give --encoding={guess or 'NAME'}"
    raise InputError(f"{path} is not {encoding}{seems}: {advice} ({problem})")


def is_utf8(data, encoding):
    """Whether bytes said to be in another encoding are UTF-8: nearly all others would decode them, too."""
    name = codecs.lookup(encoding).name
    seven_bit = data.isascii() and not name.startswith(("utf-16", "utf-32"))  # the same, or HZ, UTF-7, ...
    if seven_bit or name.startswith("utf-8") or data.count(0) * 10 > len(data):
        return False
    return data.decode("utf-8", "ignore").encode() == data


def guess_encoding(data):
    """The encoding of bytes that are not UTF-8: Windows' UTF-16, China's GB18030 (GBK), or '': no guess."""
    for bom, name in BOMS.items():
        if data.startswith(bom):
            return name
    if data.count(0) * 10 > len(data):  # the other half of an ASCII character
        return "utf-16-be" if data[::2].count(0) > data[1::2].count(0) else "utf-16-le"
    high, valid = (len(re.findall(rb"[\x80-\xff]", d)) for d in (data, data.decode(errors="ignore").encode()))
    text = data.decode("gb18030", "ignore")
    common = len(re.findall("[的一是不了在人有我你他这中大来上个国们到说和为可以会要好]", text))  # in Chinese
    return "gb18030" if valid * 2 < high < common * 60 else ""  # not UTF-8 with a broken byte, nor Cyrillic


def read_text(path, encoding="utf-8"):
    """The text of a file. InputError where it is not in that encoding."""
    with open_text(path, encoding) as f:
        return decode(f.read(), path).replace("\r\n", "\n")


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
    values = find_values(path, start, end, encoding) if lines is None else number_lines(path, lines)
    for place, value in itertools.islice(values, limit):
        try:
            converted = convert(parse(value) if isinstance(value, bytes) else value)
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
    """(place, value) of each value in a file; a line of JSON is not parsed yet, but bytes."""
    if not path.lower().endswith(JSON_ENDINGS):
        texts = read_text(path, encoding).split(END_OF_TEXT)
        yield from ((f"text {i}", text) for i, text in enumerate(texts, 1) if text.strip())
        return
    with open_text(path, encoding) as file:
        if holds_an_array(path, file) and end is None:
            text = decode(file.read(), path)
            try:
                items = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} is broken: {error}") from None
            items = items if isinstance(items, list) else [items]
            yield from ((f"item {i}", item) for i, item in enumerate(items, 1))
            return
        file.seek(max(start, file.tell()))
        yield from number_lines(path, read_part(file, end))


def holds_an_array(path, file):
    """Whether an open file of JSON is one value, nearly always an array, and not a value a line."""
    start = file.tell()
    lines = (line for line in file if not line.isspace())
    first = next(lines, b"")
    array = first.strip() in (b"[", b"{")
    if path.lower().endswith(".json") and first.lstrip().startswith(b"["):
        try:
            parse(first)
            array = next(lines, None) is None
        except ValueError:  # it ends on a later line
            array = True
    file.seek(start)
    return array


def read_part(file, end):
    """The lines that begin before the byte `end`; None: all."""
    while (end is None or file.tell() < end) and (line := file.readline()):
        yield line


def number_lines(path, lines):
    """("line 7", line) of the lines that are not blank. InputError: not UTF-8, but GB18030 or UTF-16."""
    for i, line in enumerate(lines, 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            if guess_encoding(line):
                decode(line, f"{path}, line {i},")
        if not line.isspace():
            yield f"line {i}", line


def parse(line):
    """The value of a line of JSON. ValueError says what is wrong, without the place: it is counted."""
    try:
        return json.loads(line.decode("utf-8-sig"))  # files with a mark that were joined have it here, too
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("a number of too many digits") from None


def get_text(item, key="text"):
    """item[key], or an item that is a text itself. ValueError if there is no text, or a blank one."""
    text = item.get(key) if isinstance(item, dict) else item
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no {key}")
    if text != text.encode("utf-8", "ignore").decode("utf-8"):  # JSON can spell one
        raise ValueError("half a surrogate pair, which is no character")
    return text


def has_types_of(value, example):
    """Whether a value has the type of an example, and has all that is in it, if that is a dict or a list."""
    if type(value) is not type(example):
        return False
    if isinstance(value, list):
        return len(value) == len(example) and all(map(has_types_of, value, example))
    inner = example.items() if isinstance(example, dict) else ()
    return all(name in value and has_types_of(value[name], one) for name, one in inner)


def read_checkpoint(path, mmap=False):
    """model.load_checkpoint. InputError says in a sentence why a file is no checkpoint of this model."""
    if not os.path.isfile(path):
        raise InputError(f"no checkpoint {path}: train.py writes one")
    try:
        checkpoint = load_checkpoint(path, mmap)
    except Exception as error:  # of torch, pickle, zipfile and the disk
        raise InputError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from None
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if isinstance(weights, dict) and any(name.endswith("transformer.wte.weight") for name in weights):
        raise InputError(f"{path} is nanoGPT's: its model, GPT-2, has other parts than this one")
    try:
        with torch.device("meta"), warnings.catch_warnings():  # takes no memory, and copies nothing
            warnings.simplefilter("ignore")
            Transformer.from_checkpoint(checkpoint)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no model of this kind: {type(error).__name__}: {detail}") from None
    if not isinstance(checkpoint.get("tokenizer"), dict | None):
        raise InputError(f"{path} holds no tokenizer, but something else under that name")
    return checkpoint
