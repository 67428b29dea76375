"""What the tests share: running a script, small corpora, small models. Every test file has it as a plugin."""

import json
import os
import random
import runpy
import signal
import subprocess
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in a small model, threads wait longer than they work

import numpy as np
import pytest
import sentencepiece
import torch

import prepare_data
from configurator import write_json
from devices import autocast
from extras.synthetic_stories import write_shard
from model import ModelArgs, Transformer, model_args_dict
from tinystories import PretokDataset
from tokenizer import Tokenizer

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the repository
SHARED = os.path.join(HERE, "..", "shared", "data")
LLAMA2C = os.path.join(SHARED, "llama2c")
STORIES260K, TOK512 = os.path.join(LLAMA2C, "stories260K.pt"), os.path.join(LLAMA2C, "tok512.model")
ZH = os.path.join(SHARED, "zh")
START, END = 3, 4  # the ids of <|im_start|> and <|im_end|> in the Chinese track
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # torch may have been imported before
needs_shared = pytest.mark.skipif(not os.path.isdir(SHARED), reason="../shared/data is not there")


def run(*args, ok=True, cwd=HERE, **kwargs):
    """Run "train.py" or "extras.export" as a user does; returns what it printed (stdout, stderr)."""
    script = [os.path.join(HERE, args[0])] if args[0].endswith(".py") else ["-m", args[0]]
    done = subprocess.run(
        [sys.executable, *script, *map(str, args[1:])], capture_output=True, text=True, cwd=cwd, **kwargs
    )
    assert (done.returncode == 0) == ok, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    if not ok:
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) >= 1
    return done.stdout, done.stderr


def run_here(script, *args):
    """Run a script in this process, which has torch already. Its globals, or None after sys.exit(0)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, hook, precision = sys.argv, sys.excepthook, torch.get_float32_matmul_precision()
    sys.argv = [script, *map(str, args)]
    try:
        return runpy.run_path(os.path.join(HERE, script), run_name="__main__")
    except SystemExit as end:
        assert end.code == 0
    finally:
        sys.argv, sys.excepthook = argv, hook
        torch.set_float32_matmul_precision(precision)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def prepare(command, source, target, *args):
    """prepare_data.py COMMAND, in this process."""
    run_here("prepare_data.py", command, f"--input_path={source}", f"--output_path={target}", *args)


def read_rows(path):
    return [json.loads(line) for line in read_bytes(path).splitlines()]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A small corpus of synthetic stories with its tokenizer and shards: 50 shards, 2 MB, vocabulary 512."""
    folder = str(tmp_path_factory.mktemp("data"))
    run_here("tinystories.py", "synthesize", f"--data_dir={folder}", "--megabytes=2")
    run_here("tinystories.py", "pretokenize", f"--data_dir={folder}", "--vocab_size=512")
    return folder


def flags(**options):
    """flags(dim=64) -> ["--dim=64"]"""
    return [f"--{name}={value}" for name, value in options.items()]


SMALL = flags(
    vocab_size=512, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64, batch_size=4,
    gradient_accumulation_steps=2, eval_iters=4, warmup_iters=2, compile="false", dtype="float32",
    learning_rate=3e-3, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """output/ of a run of 40 steps."""
    out = str(tmp_path_factory.mktemp("run") / "output")
    options = flags(data_dir=data, out_dir=out, max_iters=40, eval_interval=20, save_interval=15)
    run_here("train.py", *SMALL, *options)
    return out


@pytest.fixture(autouse=True)
def same_random_numbers_in_every_run():
    torch.manual_seed(0)


def small_model(seed=0, lively=False, **changes):
    """A fresh model, which repeats its last token, or a lively one: what it writes depends on all it read."""
    torch.manual_seed(seed)
    shape = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 96}
    shape |= {"max_seq_len": 32, "multiple_of": 16, "tie_embeddings": not lively}
    model = Transformer(ModelArgs(**shape | changes))
    if lively:
        for p in model.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=0.3)
    return model


def dataset(data, split="train", T=64, **kwargs):
    return PretokDataset(split, T, 512, "custom", data_dir=data, **kwargs)


def write_ids(folder, shards, vocab_size=512, **meta):
    """A folder of shards, {name: ids}, which train.py takes for text."""
    os.makedirs(folder, exist_ok=True)
    for name, ids in shards.items():
        np.asarray(ids, "<u2").tofile(os.path.join(folder, f"{name}.bin"))
    write_json(f"{folder}/meta.json", {"vocab_size": vocab_size, "dtype": "uint16"} | meta)


def losses_of(device, dtype, backend, steps=30):
    """The losses of a small model that reads four batches over and over; backend None: not compiled."""
    model = small_model(n_layers=1).to(device)
    forward = torch.compile(model, backend=backend) if backend else model
    optimizer = model.configure_optimizers(0.0, 5e-3, (0.9, 0.95))
    scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")
    batches = torch.randint(96, (4, 4, 17), generator=torch.Generator().manual_seed(1)).to(device)
    losses = []
    for i in range(steps):
        x = batches[i % 4]
        with autocast(device, dtype):
            loss = forward(x[:, :-1], x[:, 1:])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def chat_rows(folder, mask, vocab_size):
    """Shards of fine-tuning with that mask, the same for training and validation; returns the random ids."""
    rows = np.random.default_rng(0).integers(vocab_size, size=mask.shape, dtype="<u2")
    write_ids(folder, {"data00": rows, "data01": rows}, vocab_size, row_len=mask.shape[1] - 1)
    for name in ("data00", "data01"):
        mask.tofile(folder / f"{name}.mask")
    return rows


def sentences(rng, count):
    """Made-up Chinese: words of one to three characters of a hundred, and full-width punctuation."""
    letters = [chr(0x4E00 + 37 * i) for i in range(100)]
    words = ["".join(rng.choices(letters, k=rng.randint(1, 3))) for _ in range(60)]
    return ["".join(rng.choices(words, k=rng.randint(3, 9))) + rng.choice("。，！") for _ in range(count)]


def system(content=prepare_data.SYSTEM):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="session")
def zh(tmp_path_factory):
    """chunks.jsonl, chats.jsonl (up to 4 turns each), and tokenizer_k of 600 tokens."""
    folder, rng = tmp_path_factory.mktemp("zh"), random.Random(0)
    texts = ["".join(sentences(rng, rng.randint(1, 90))) for _ in range(300)]
    write_rows(folder / "raw.jsonl", [{"text": text} for text in texts])
    prepare("pretrain", folder / "raw.jsonl", folder / "chunks.jsonl")
    chats = []
    for _ in range(200):
        lines = sentences(rng, 2 * rng.randint(1, 4))
        chats.append([system(), *(speak(line) for speak, line in zip((user, assistant) * 4, lines))])
    write_rows(folder / "chats.jsonl", chats)
    args = flags(data_path=folder / "chunks.jsonl", save_dir=folder / "tokenizer_k", vocab_size=600)
    run_here("train_tokenizer.py", *args)
    return folder


@pytest.fixture(scope="session")
def tok(zh):
    return Tokenizer(str(zh / "tokenizer_k"))


def train_sentencepiece(folder, **options):
    """A sentencepiece tokenizer like tinystories.py's, but for the options."""
    stories = (row["story"].replace(" and ", "  and   ") for row in write_shard(0, 0, 100_000))
    settings = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    settings |= {"vocab_size": 500, "minloglevel": 2} | options
    prefix = f"{folder}/trained"
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=stories, model_prefix=prefix, **settings)
    return Tokenizer(f"{prefix}.model")


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def golden():
    return read_bytes(f"{LLAMA2C}/stories260K.expected.txt").decode().rstrip("\n")


def random_checkpoint(path, tokenizer=None, dtype=torch.float32, **shape):
    """A checkpoint with random weights, norms included, saved as train.py saves it."""
    torch.manual_seed(0)
    sizes = {"dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 96, "multiple_of": 8}
    model = Transformer(ModelArgs(**sizes | {"max_seq_len": 64} | shape)).to(dtype)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.dim() == 2 else 1.0)
    saved = {"model": model.state_dict(), "model_args": model_args_dict(model.args)}
    torch.save(saved | {"tokenizer": tokenizer}, path)
    return str(path)


ALONE = {"OMP_NUM_THREADS": "1"}  # several processes at once: a thread each, or they wait for one another


def assert_same_run(out, other, tolerance):
    """Every step and evaluation once, in order, with the numbers of the other run."""
    rows, want = (read_rows(os.path.join(o, "log.jsonl")) for o in (out, other))
    assert [(r["step"], r.keys()) for r in rows] == [(r["step"], r.keys()) for r in want]
    for row, other_row in zip(rows, want):
        for key in row.keys() - {"tok_per_s", "tokens"}:
            room = tolerance * (10 if key == "grad_norm" else 1)  # a root of a sum over all weights
            assert abs(row[key] - other_row[key]) <= room, (row, other_row)
