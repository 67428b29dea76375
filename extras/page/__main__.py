"""
Writes a model as one HTML file in which it can be seen at work.

Reads  whatever extras/export.py reads: output/ckpt.pt (train.py), checkpoints of llama2.c's, ...
Writes output/page.html, which holds the model, its tokenizer and the program that runs them. It opens in any
       browser, from a disk or a mail, and neither needs nor uses a network

    python -m extras.page                                                   the quick start's model: 1.5 MB
    python -m extras.page --checkpoint=output_sft/ckpt.pt --out=chat.html   a chat

The program is plain JavaScript, to be read like the rest of the course: model.js (the model and the
sampler), tokenizer.js, session.js (what the page asks the model), view.js, chips.js and panels.js (the page
itself), text.js (its words in two languages). page.html is the frame for them. A panel of your own: its name
in TABS and its function in show_panel (panels.js), a tab and a section in page.html, its words in text.js.

What the page shows comes from a model and from what a person types: view.js makes text of it, never markup.
A Content-Security-Policy lets the browser run these scripts and no others, and forbids all network access.
"""

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import torch

from configurator import InputError, atomic_write, override
from extras.export import iter_weights, load_weights, output_path, without_padding
from extras.tokenizer_check import (
    byte_level_parts,
    check_tokenizer,
    collapses_spaces,
    merge_by_score,
    merge_in_words,
    one_space,
)
from prepare_data import SYSTEM

checkpoint = "output/ckpt.pt"  # the model: anything that extras/export.py reads
tokenizer = ""  # a tokenizer, if the checkpoint holds none
out = "output/page.html"  # the file to write
chat = True  # a chat, if the tokenizer has a chat format; False: a story all the same
prompt = "One day, Lily met a Shoggoth"  # how the story begins until another beginning is typed
system = SYSTEM  # the system message of a chat; '' is none

HERE = Path(__file__).parent
MODEL = ("model.js", "tokenizer.js", "session.js")  # what the web worker runs, too
VIEW = ("text.js", "view.js", "chips.js", "panels.js")
MAX_BYTES = 64 * 2**20  # a browser on a telephone opens no larger page


def pack(args, weights):
    """(bytes, table) of the weights in float16; table: [name, numbers] of each. model.js reads them."""
    data = []
    table = []
    for name, w in iter_weights(args, weights):
        half = w.to(torch.float16)
        if not half.isfinite().all():
            raise InputError(f"{checkpoint}: {name} holds numbers that float16 does not have")
        data.append(half.numpy().astype("<f2").tobytes())
        table.append([name, w.numel()])
    return b"".join(data), table


def tokenizer_data(tok):
    """The tokenizer as tokenizer.js reads it. InputError if that does not give the ids of this one."""
    ids = range(tok.n_words)
    names = ("kind", "bos_id", "eos_id", "chat_start_id", "chat_end_id")
    common = {name: getattr(tok, name) for name in names}
    pieces = [tok.piece(i) for i in ids]
    id_of = {piece: i for i, piece in enumerate(pieces)}
    if tok.kind == "tokenizers":
        parts = byte_level_parts(tok, "tokenizer.js of the page")
        rule = merge_in_words(id_of, parts["merges"], parts["digits"])
        check_tokenizer(tok, rule, "the page", prepare=tok.normalize)
        return {**common, "pieces": pieces, **parts, "chat": tok.has_chat_format}
    sp = tok.sp
    tests = {"u": sp.is_unknown, "c": sp.is_control, "x": sp.is_unused, "b": sp.is_byte}
    data = {
        "scores": [sp.get_score(i) for i in ids],
        "kinds": "".join(next((letter for letter, test in tests.items() if test(i)), "n") for i in ids),
        "unk_surface": sp.decode([sp.unk_id()]),
        "collapse_spaces": collapses_spaces(tok),
        "add_prefix": sp.normalize("a") == "▁a",
    }
    known = {piece: i for piece, i in id_of.items() if data["kinds"][i] in "nb"}
    rule = merge_by_score(known, data["scores"], data["add_prefix"], sp.unk_id())
    shorten = one_space if data["collapse_spaces"] else str
    check_tokenizer(tok, lambda text: rule(shorten(text)), "the page")
    return {**common, "pieces": pieces, **data}


def build(args, weights, tok, stop_ids=()):
    """The page as a text."""
    args, weights = without_padding(args, weights, tok)
    data, table = pack(args, weights)
    config = {
        "model_args": vars(args),
        "parameters": sum(numbers for _, numbers in table),
        "weights": table,
        "tokenizer": tokenizer_data(tok),
        "stop_ids": [i for i in stop_ids if i < tok.n_words],
        "chat": chat and tok.has_chat_format,
        "prompt": prompt,
        "system": system,
    }
    parts = {
        "worker": "\n".join(read(name) for name in MODEL),
        "view": "\n".join(read(name) for name in VIEW),
        "style": read("page.css"),
        "config": json.dumps(config, ensure_ascii=False).replace("<", "\\u003c"),  # "</script>" ends one
        "weights": base64.b64encode(data).decode("ascii"),
    }
    for name in ("style", "worker", "view"):
        digest = hashlib.sha256(parts[name].encode("utf-8")).digest()
        parts[f"hash_{name}"] = f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read("page.html"))


def read(name):
    return (HERE / name).read_text(encoding="utf-8")


def check_size(size):
    if size > MAX_BYTES:
        raise InputError(f"this model is too large for a page: {size / 2**20:.0f} MB, and the most is 64 MB")


def main():
    path = output_path(out, (checkpoint, tokenizer))
    args, weights, tok, stop_ids = load_weights(checkpoint, tokenizer)
    if not tok:
        raise InputError(f"{checkpoint} holds no tokenizer: give it one, --tokenizer=PATH")
    numbers = sum(w.numel() for _, w in iter_weights(args, weights))
    check_size(numbers * 2 * 4 / 3)  # float16 in base64; it will be a little more
    page = build(args, weights, tok, stop_ids)
    size = len(page.encode("utf-8"))
    check_size(size)
    with atomic_write(path) as f:
        f.write(page)
    print(f"wrote {out} ({size / 1e6:.1f} MB): open it in a browser")


if __name__ == "__main__":
    sys.argv[0] = "extras.page"  # the name in its messages
    override(globals())
    main()
