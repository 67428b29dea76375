"""
The files that people bring: stories, chunks, conversations, prompts, checkpoints. All of them are read here.

Text is UTF-8, with or without a byte order mark. Anything else is refused by its name: text in a wrongly
guessed encoding would be learned without a word. A value that cannot be used is left out, counted and named.
"""

import codecs
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
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
COMMON_CHINESE = "[的一是不了在人有我你他这中大来上个国们到说和为可以会要好]"
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
END_OF_TEXT = "<|endoftext|>"
MAX_REPORTED = 20  # values left out that are named, for each reason; those after them are only counted


def open_text(path, encoding="utf-8", start=0, end=None):
    """A file, or its bytes from start to end, as a text stream; bytes of no character become surrogates."""
    try:
        file = open(path, "rb")
        head = file.peek(512)[:512]
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    packed = [name for magic, name in PACKED.items() if head.startswith(magic)]
    if packed or head[257:262] == b"ustar":
        raise InputError(f"{path} is not text, but {(packed or ['tar'])[0]}: unpack or convert it first")
    if encoding != "utf-8":
        return io.StringIO(decode(file.read(), path, encoding))
    check_encoding(head.decode("utf-8", "surrogateescape"), path, strict=False)
    if end is not None:
        file.seek(start)
        file = io.BytesIO(file.read(end - start))
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")


def decode(data, path, encoding):
    """Bytes in another encoding than UTF-8 as a text. InputError if they are UTF-8, or not in it."""
    try:
        text = data.decode(encoding)
    except LookupError:
        raise InputError(f"--encoding={encoding}: Python knows no such encoding") from None
    except UnicodeError as error:
        raise InputError(f"{path} is not {encoding}: {error}") from None
    # UTF-8 decodes in most encodings, as other text. In UTF-16 half of the bytes of ASCII are 0.
    is_utf8 = data.decode(errors="ignore").encode() == data and data.count(0) * 4 <= len(data)
    if is_utf8 and not data.isascii() and not codecs.lookup(encoding).name.startswith("utf-8"):
        raise InputError(f"{path} is utf-8, not {encoding}: leave out --encoding")
    return text.replace("\r\n", "\n").removeprefix("\ufeff")


def check_encoding(text, path, strict=True):
    """
    InputError where a text that was read as UTF-8 is in another encoding. It names Windows' UTF-16 and
    China's GB18030 (GBK). strict=False lets UTF-8 with a broken byte pass.
    """
    if not re.search("[\0\udc80-\udcff]", text):
        return
    data = text.encode("utf-8", "surrogateescape")
    guess = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "")
    high, valid = (len(re.findall(rb"[\x80-\xff]", d)) for d in (data, data.decode(errors="ignore").encode()))
    common = len(re.findall(COMMON_CHINESE, data.decode("gb18030", "ignore")))
    if data.count(0) * 6 > len(data):  # the other half of an ASCII character
        guess = guess or ("utf-16-be" if data[::2].count(0) > data[1::2].count(0) else "utf-16-le")
    elif valid * 2 < high < common * 60:
        guess = guess or "gb18030"
    if guess or (strict and high > valid):
        seems = f", but seems to be {guess}" if guess else ""
        advice = f"convert it, or where there is that option give --encoding={guess or 'NAME'}"
        raise InputError(f"{path} is not utf-8{seems}: {advice}")


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
    if not path.lower().endswith(JSON_ENDINGS):
        texts = read_text(path, encoding).split(END_OF_TEXT)
        yield from ((f"text {i}", text) for i, text in enumerate(texts, 1) if text.strip())
        return
    with open_text(path, encoding, start, end) as file:
        first = next((line for line in file if not line.isspace()), "")
        if first.strip() in ("[", "{") or (path.lower().endswith(".json") and first.lstrip().startswith("[")):
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
        try:
            value = parse(line)
        except ValueError as error:
            value = error
        if not line.isspace():
            yield f"line {i}", value


def parse(line):
    """The value of a line of JSON. ValueError says what is wrong, without the place: it is counted."""
    if re.search("[\udc80-\udcff]", line):
        raise ValueError("not UTF-8")
    try:
        return json.loads(line.removeprefix("\ufeff"))  # of a file with a mark that was joined
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
    if re.search("[\ud800-\udfff]", text):  # JSON can spell one
        raise ValueError("half a surrogate pair, which is no character")
    return text


def has_types_of(value, example):
    """Whether a value has the type of an example, and has all that is in it, if that is a dict."""
    inner = example.items() if isinstance(example, dict) else ()
    if type(value) is not type(example):
        return False
    return all(name in value and has_types_of(value[name], one) for name, one in inner)


def read_checkpoint(path, mmap=False):
    """model.load_checkpoint. InputError says in a sentence why a file is no checkpoint of this model."""
    try:
        checkpoint = load_checkpoint(path, mmap)
    except FileNotFoundError:
        raise InputError(f"no checkpoint {path}: train.py writes one") from None
    except Exception as error:  # of torch, pickle, zipfile and the disk
        raise InputError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from None
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if isinstance(weights, dict) and any(str(name).endswith("transformer.wte.weight") for name in weights):
        raise InputError(f"{path} is nanoGPT's: a GPT-2, which is another model than this one")
    try:
        with torch.device("meta"), warnings.catch_warnings():  # takes no memory, and copies nothing
            warnings.simplefilter("ignore")
            Transformer.from_checkpoint(checkpoint)
        if "n_heads" not in checkpoint["model_args"]:
            print(f"{path} does not say how many heads its model has: taking happy-llm's 16", file=sys.stderr)
        if not isinstance(checkpoint.get("tokenizer") or {}, dict):
            raise TypeError("the tokenizer is none")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no model of this kind: {type(error).__name__}: {detail}") from None
    return checkpoint
