"""
A text of your own, as stories: tinystories.py pretokenize --input_path=my.txt --data_dir=data_mine

Reads  .txt            documents with <|endoftext|> between them; long ones, and a text without it, are cut
       .jsonl, .json   {"text": ...} in each line or item; --text_key=text names the field
Writes files of stories, the first of which is for validation. The text is read as a whole into memory.
"""

import hashlib
import os
import re
import shutil

from configurator import InputError, read_json, write_json
from reader import get_text, read_values

MIN_BYTES = 20_000  # of a file of stories
# The end of a piece, after its first 2,000 characters: of a line, else of a sentence, else of a word; at most
# 2,000 characters more.
PIECE = re.compile(
    r"(?s).{2000}.{0,2000}?(?:\n|\Z)|.{2000}.{0,2000}?[.!?。！？…]+|.{2000}.{0,2000}?\s|.{1,4000}"
)


def write_own_text(path, text_key, encoding, folder, max_shards):
    """
    Write data00.json, data01.json, ... of about equal size into a new folder. The same text again changes
    nothing. InputError where the folder holds other stories, or the text is too short.
    """
    documents = read_documents(path, text_key, encoding)
    source = {"source": hashlib.sha256("".join(documents).encode()).hexdigest()[:16]}
    if os.path.exists(folder):
        known = f"{folder}/corpus.json"
        if os.path.exists(known) and source.items() <= read_json(known).items():
            return
        raise InputError(f"{folder} is there already, with other stories: give another --data_dir")
    shards = deal(documents, max_shards)
    if len(shards) < 2:
        size = sum(len(text.encode()) for text in documents)
        found = f"{size:,} bytes in {len(documents)} documents"
        raise InputError(f"{path} has {found}: it needs {2 * MIN_BYTES:,} bytes, and some more")
    unfinished = f"{folder}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for i, texts in enumerate(shards):
        write_json(f"{unfinished}/data{i:02}.json", [{"story": text} for text in texts])
    write_json(f"{unfinished}/corpus.json", source)
    os.rename(unfinished, folder)
    print(f"{path}: {len(documents):,} documents in {len(shards)} files of stories")


def read_documents(path, text_key="text", encoding="utf-8"):
    """The documents of a file, as texts. One that is alone, or larger than a file of stories, is cut."""
    documents = list(read_values(path, lambda item: get_text(item, text_key), encoding=encoding))
    most = MIN_BYTES // 4 if len(documents) > 1 else 0  # a character has up to 4 bytes
    pieces = (PIECE.findall(text) if len(text) > most else [text] for text in documents)
    return [text.strip() for texts in pieces for text in texts if text.strip()]


def deal(documents, max_shards):
    """The documents in their order, as at most max_shards lists of about equal size, MIN_BYTES or more."""
    size = sum(len(text.encode()) for text in documents)
    target = max(MIN_BYTES, size / max_shards)
    shards = [[]]
    filled = 0  # bytes up to here
    for text in documents:
        if filled >= target * len(shards) and size - filled >= MIN_BYTES:
            shards.append([])
        shards[-1].append(text)
        filled += len(text.encode())
    return shards
