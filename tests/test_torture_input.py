"""Damaged files, through every command that reads them: each ends in one sentence or in a whole result."""

import concurrent.futures
import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tinystories
from configurator import InputError
from tests.fixtures import SMALL, flags, run_here

pytest_plugins = ["tests.fixtures"]
VALUES = (None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x", "../x", "\ud800", [], [[]], {}, {"a": 1})
COUNT = 4  # damaged copies of a file, and twice as many in which something is of another type
TENSORS = (*VALUES, b"x", torch.zeros(2, 3), torch.zeros(0))
TEXTS = [{"text": f"春江潮水连海平。{i} The cat <s> sat." * 40} for i in range(60)]
CHATS = [{"conversations": [{"from": "human", "value": f"{i}+1=?"}, {"from": "assistant", "value": f"{i}"}]}
         for i in range(60)]  # fmt: skip
PREPARE = ("--output_path=out/o", "--tokenizer=k", "--max_seq_len=64")
SFT = ("prepare_data.py", "pretokenize_sft", "--input_path=chats.jsonl", *PREPARE)
PRETRAIN = ("prepare_data.py", "pretrain", "--output_path=out/o.jsonl")
STORIES = ("tinystories.py", "pretokenize", "--data_dir=out", "--vocab_size=400")
TRAIN = ("train.py", *flags(eval_iters=1, max_iters=1, n_layers=1, dim=16, n_heads=2, n_kv_heads=1),
         *(word for word in SMALL if word[2:6] in ("max_", "batc", "comp", "dtyp", "devi")))  # fmt: skip
READERS = {  # a file: the commands that read it
    "raw.jsonl": [(*PRETRAIN, "--input_path=raw.jsonl")],
    "raw.JSON": [(*PRETRAIN, "--input_path=raw.JSON"),
                 ("prepare_data.py", "synthesize", "--data_dir=m.model")],
    "raw.txt": [(*PRETRAIN, "--input_path=raw.txt"), (*STORIES, "--input_path=raw.txt"),
                ("sample.py", "--checkpoint=c.pt", "--prompt=FILE:raw.txt")],
    "belle.jsonl": [("prepare_data.py", "sft", "--input_path=belle.jsonl", "--output_path=out/o.jsonl")],
    "chunks.jsonl": [("prepare_data.py", "pretokenize", "--input_path=chunks.jsonl", *PREPARE)],
    "chats.jsonl": [SFT], "out/o/meta.json": [SFT],
    "short.jsonl": [("train_tokenizer.py", "--data_path=short.jsonl",
                     "--save_dir=out/k", "--vocab_size=300")],
    **{f"k/{name}.json": [SFT] for name in ("tokenizer", "tokenizer_config", "special_tokens_map")},
    "m.model": [("tokenizer.py", "--tokenizer=m.model", "--text=好 <s>")],
    "out/TinyStories_all_data/data00.json": [STORIES], "out/TinyStories_all_data/corpus.json": [STORIES],
    "out/TinyStories_all_data/data01.json": [("tinystories.py", "train_vocab", *STORIES[2:]), STORIES],
    **{f"shards/{name}": [(*TRAIN, "--vocab_source=shards", "--out_dir=out")]
       for name in ("meta.json", "data00.bin", "data01.bin", "data01.mask")},
    "c.pt": [("sample.py", "--checkpoint=c.pt"),
             ("extras/page/__main__.py", "--checkpoint=c.pt", "--out=out/p.html"),
             *(("extras/export.py", "--checkpoint=c.pt", f"--export_format={kind}", f"--out=out/{kind}")
               for kind in ("ckpt", "gguf", "llama2c", "llama2c_q80")),
             (*TRAIN, "--vocab_source=shards", "--out_dir=out", "--init_from=c.pt")],
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


def to_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def to_checkpoint(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def of_other_types(rng, path, content):
    """Copies of a file in which a value is another one."""
    kinds = {  # of a file: how it is read and written
        ".pt": (lambda: torch.load(io.BytesIO(content), weights_only=True), to_checkpoint),
        ".jsonl": (lambda: [json.loads(line) for line in content.splitlines()], to_lines),
        ".json": (lambda: json.loads(content), lambda value: json.dumps(value).encode()),
    }
    read, write = kinds.get(Path(path).suffix.lower(), (dict, None))
    value = read()
    others = TENSORS if path.endswith("pt") else VALUES
    return [write(replace_somewhere(rng, value, rng.choice(others))) for _ in range(2 * COUNT) if value]


@pytest.fixture(scope="module")
def good(tmp_path_factory, zh, data):
    """A folder with a good file for each of READERS."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(zh / "tokenizer_k", folder / "k")
    shutil.copy(f"{data}/tok512.model", folder / "m.model")
    stories = "TinyStories_all_data"
    shutil.copytree(f"{data}/{stories}", folder / "out" / stories, ignore=lambda _, names: sorted(names)[3:])
    for name in ("chunks", "chats"):
        shutil.copy(zh / f"{name}.jsonl", folder)
    chunks = (folder / "chunks.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "short.jsonl").write_bytes(b"".join(chunks[:60]))
    (folder / "belle.jsonl").write_bytes(to_lines(CHATS))
    (folder / "raw.JSON").write_text(json.dumps(TEXTS))
    for name in ("raw.jsonl", "raw.txt"):
        (folder / name).write_bytes(to_lines(TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for out in ("shards", "out/o"):
            command = ("prepare_data.py", "pretokenize_sft", "--input_path=chats.jsonl", *PREPARE[1:])
            run_here(*command, f"--output_path={out}", "--workers=1")
        run_here(*TRAIN, "--vocab_source=shards", "--out_dir=out")
    shutil.copy(folder / "out" / "ckpt.pt", folder / "c.pt")
    return folder


@pytest.mark.parametrize("path", READERS)
def test_a_damaged_file_ends_in_a_sentence_or_in_a_result(path, good, tmp_path, monkeypatch):
    rng = random.Random(path)
    shutil.copytree(good, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    in_this_process = contextlib.nullcontext(SimpleNamespace(map=map))
    for module in (concurrent.futures, tinystories):
        monkeypatch.setattr(module, "ProcessPoolExecutor", lambda workers, initializer: in_this_process)
    monkeypatch.setattr("extras.plot.try_draw", lambda *_: None)
    monkeypatch.setattr("model.Transformer.generate_stream", lambda *_: iter(()))
    content = Path(path).read_bytes()
    cases = [damaged(rng, content) for _ in range(COUNT)] + ["folder", "link"]
    cases += of_other_types(rng, path, content)
    for case in cases:
        shutil.rmtree("out")
        shutil.copytree(good / "out", "out", ignore=None if path[:3] == "out" else lambda _, names: names)
        if os.path.isdir(path):
            os.rmdir(path)
        elif os.path.lexists(path):
            os.unlink(path)
        if isinstance(case, bytes):
            Path(path).write_bytes(case)
        elif case == "folder":
            os.mkdir(path)
        else:
            os.symlink("nowhere", path)
        for command in READERS[path] if isinstance(case, str) else [rng.choice(READERS[path])]:
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
