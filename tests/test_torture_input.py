"""Damaged files, through every command that reads them: each ends in one sentence or in a whole result."""

import contextlib
import io
import itertools
import json
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configurator import InputError
from tests.fixtures import SMALL, flags, run_here

pytest_plugins = ["tests.fixtures"]
VALUES = (None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x", "../x", "\ud800", [], [[]], {}, {"a": 1})
COUNT = 6  # damaged copies of a file, and twice as many in which something is of another type
TENSORS = (*VALUES, b"x", torch.zeros(2, 3), torch.zeros(0))
PREPARE = ("--output_path=out/o", "--tokenizer=tokenizer_k", "--max_seq_len=64")
SFT = ("prepare_data.py", "pretokenize_sft", "--input_path=chats.jsonl", *PREPARE)
STORIES = ("tinystories.py", "pretokenize", "--data_dir=out", "--vocab_size=400")
TRAIN = ("train.py", *SMALL, *flags(vocab_size=600, eval_iters=1, max_iters=1, vocab_source="shards"))
READERS = {  # a file: the commands that read it
    "raw.jsonl": [("prepare_data.py", "pretrain", "--input_path=raw.jsonl", "--output_path=out/o.jsonl")],
    "raw.txt": [(*STORIES, "--input_path=raw.txt"),
                ("sample.py", "--checkpoint=c.pt", "--prompt=FILE:raw.txt")],
    "belle.jsonl": [("prepare_data.py", "sft", "--input_path=belle.jsonl", "--output_path=out/o.jsonl")],
    "chunks.jsonl": [("prepare_data.py", "pretokenize", "--input_path=chunks.jsonl", *PREPARE),
                     ("train_tokenizer.py", "--data_path=chunks.jsonl", "--save_dir=out/k",
                      "--vocab_size=300")],
    "chats.jsonl": [SFT], "out/o/meta.json": [SFT],
    **{f"tokenizer_k/{name}.json": [SFT] for name in ("tokenizer", "tokenizer_config", "special_tokens_map")},
    "m.model": [("tokenizer.py", "--tokenizer=m.model", "--text=好 <s>")],
    "out/TinyStories_all_data/data01.json": [("tinystories.py", "train_vocab", *STORIES[2:]), STORIES],
    **{f"shards/{name}": [(*TRAIN, "--out_dir=out")]
       for name in ("meta.json", "data00.bin", "data01.bin", "data01.mask")},
    "c.pt": [("sample.py", "--checkpoint=c.pt"), (*TRAIN, "--out_dir=out", "--init_from=c.pt"),
             ("extras/page/__main__.py", "--checkpoint=c.pt", "--out=out/p.html"),
             *(("extras/export.py", "--checkpoint=c.pt", f"--export_format={kind}", f"--out=out/{kind}")
               for kind in ("ckpt", "gguf", "llama2c", "llama2c_q80"))],
    **{f"out/{name}": [("train.py", "--init_from=resume", "--out_dir=out", "--max_iters=2")]
       for name in ("last.pt", "log.jsonl")},
}  # fmt: skip


def replace_somewhere(rng, value, new):
    """A copy of nested dicts and lists with something else at a random place, more often at a high one."""
    key = rng.choice([*value] if isinstance(value, dict) else range(len(value)))
    inner = value[key]
    deeper = isinstance(inner, dict | list) and inner and rng.random() < 0.7
    copy = value.copy()
    copy[key] = replace_somewhere(rng, inner, new) if deeper else new
    return copy


def damaged(rng, content):
    """A damaged copy of a file: cut off, a bit or some bytes changed, empty, UTF-16, deep nesting, noise."""
    at = rng.randrange(len(content))
    noise = rng.randbytes(rng.choice((1, 8, 600)))
    flipped = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    ways = [content[:at], flipped, content[:at] + noise + content[at:], noise, b"", b"[" * 9999]
    return rng.choice([*ways, content.decode("latin-1").encode("utf-16"), content + noise])


def to_checkpoint(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def of_other_types(rng, path, content):
    """Copies of a file in which a value is another one."""
    kinds = {  # of a file: how it is read and written
        ".pt": (lambda: torch.load(io.BytesIO(content), weights_only=True), to_checkpoint),
        ".json": (lambda: json.loads(content), lambda value: json.dumps(value).encode()),
    }
    read, write = kinds.get(Path(path).suffix, (dict, None))
    value = read()
    others = TENSORS if path.endswith("pt") else VALUES
    return [write(replace_somewhere(rng, value, rng.choice(others))) for _ in range(2 * COUNT) if value]


@pytest.fixture(scope="module")
def good(tmp_path_factory, zh, data):
    """A folder with a good file for each of READERS."""
    folder = shutil.copytree(zh, tmp_path_factory.mktemp("good") / "w")
    shutil.copy(folder / "chats.jsonl", folder / "belle.jsonl")  # sft takes messages, too
    shutil.copy(folder / "raw.jsonl", folder / "raw.txt")
    shutil.copy(f"{data}/tok512.model", folder / "m.model")
    stories = "TinyStories_all_data"
    shutil.copytree(f"{data}/{stories}", folder / "out" / stories, ignore=lambda _, names: sorted(names)[3:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for out in ("shards", "out/o"):
            run_here(*SFT, f"--output_path={out}", "--workers=1")
        run_here(*TRAIN, "--out_dir=out")
    shutil.copy(folder / "out" / "ckpt.pt", folder / "c.pt")
    return folder


@pytest.mark.parametrize("path", READERS)
def test_a_damaged_file_ends_in_a_sentence_or_in_a_result(path, good, tmp_path, monkeypatch):
    rng = random.Random(path)
    shutil.copytree(good, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    serial = contextlib.nullcontext(SimpleNamespace(map=map))
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", lambda workers, initializer: serial)
    monkeypatch.setattr("extras.plot.try_draw", lambda *_: None)
    monkeypatch.setattr("model.Transformer.generate_stream", lambda *_: iter(()))
    content = Path(path).read_bytes()
    cases = [damaged(rng, content) for _ in range(COUNT)] + of_other_types(rng, path, content)
    for case, command in zip(cases, itertools.cycle(READERS[path])):
        monkeypatch.delitem(sys.modules, "tinystories", raising=False)  # forget its tokenizers
        shutil.rmtree("out", ignore_errors=True)
        if path.startswith("out"):
            shutil.copytree(good / "out", "out")
        Path(path).write_bytes(case)
        attempt(tmp_path, command)


def attempt(root, command):
    """Run a command. What it makes lies in out/; it is whole, and nothing if the command fails."""
    files = lambda: {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}  # noqa: E731
    before = files()
    sentence = ""
    try:
        run_here(*command)
    except (InputError, OSError) as error:
        sentence = str(error)
        assert sentence.strip() and "\n" not in sentence
    except AssertionError as error:  # argparse's
        sentence = f"exit code {error.__context__}"
        assert sentence == "exit code 2"
    changed = {str(p.relative_to(root / "w")) for p, time in files().items() if before.get(p) != time}
    assert all(name.startswith("out/") and not name.endswith(".tmp") for name in changed), changed
    resumable = ("meta.json", "log.jsonl", "last.pt", ".bin", ".mask", "tok400.model")
    half = [name for name in changed if not name.endswith(resumable) and "TinyStories" not in name]
    assert not (sentence and half), (sentence, half)
