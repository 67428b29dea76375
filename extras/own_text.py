"""
A text of your own, as documents: tinystories.py pretokenize --input_path=my.txt --data_dir=data_mine

Reads  .txt    documents with <|endoftext|> between them; without it, pieces cut at line ends
       .jsonl  a {"text": ...} a line; --text_key=text names the field
       .json   a list of {"text": ...}
Writes nothing: tinystories.py writes the documents as stories. The text is read as a whole into memory.
"""

import re

from configurator import InputError
from tinystories import get_text, parse_json, read_texts

END_OF_TEXT = "<|endoftext|>"
PIECE = 2000  # characters: the length of a piece, or a bit more


def split_own_text(path, text_key, max_shards):
    """The documents of a file in their order, as 2 to max_shards lists of {"story": text}. InputError."""
    documents = read_documents(path, text_key)
    size = sum(len(text.encode()) for text in documents)
    shards = min(max_shards, len(documents), size // 20_000)
    if shards < 2:
        found = f"{size:,} bytes in {len(documents)} documents"
        raise InputError(f"{path} has {found}: it needs 40,000 bytes in 2 documents, or more")
    bounds = [len(documents) * i // shards for i in range(shards + 1)]
    return [[{"story": text} for text in documents[a:b]] for a, b in zip(bounds, bounds[1:])]


def read_documents(path, text_key):
    if path.endswith(".json"):
        texts = read_texts(path, text_key)
    elif path.endswith(".jsonl"):
        lines = [line for line in read_file(path).split("\n") if line.strip()]
        texts = [get_text(parse_json(line, path), text_key) for line in lines]
    else:
        text = read_file(path)
        if END_OF_TEXT not in text:
            text = re.sub(rf"((?s:.{{{PIECE}}}).*\n)", rf"\1{END_OF_TEXT}", text)
        texts = [document.strip() or None for document in text.split(END_OF_TEXT)]
    return [text for text in texts if text]


def read_file(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}") from None
