"""
How fast the course is, beside what exists, measured side by side on this machine.

Reads  for tokenize: the stories and the tokenizer in data_dir, or synthetic ones where there are none
Writes bench.json, and a table to the terminal; --gpu: gpu_report.md

    python -m extras.bench                              all, at the tutorial's size
    python -m extras.bench --only=sample,load           parts of it: train, sample, tokenize, load
    python -m extras.bench --fit --batch_size=128       will it fit? The memory of a training step, by formula
    python -m extras.bench --gpu                        a report on a GPU, its tests included, in 9 minutes

On a CUDA machine, where rows also give MFU (model FLOPs utilisation) and peak memory:
    python -m extras.bench --only=train,sample --batch_size=64
    python -m extras.bench --only=train --dim=768 --n_layers=12 --n_heads=12 --n_kv_heads=4 \\
        --vocab_size=6144 --max_seq_len=512 --batch_size=64 --gradient_accumulation_steps=2    80 million

Rows of a part are measured in turn (A B C A B C ...) after a warm-up, so that what else the machine does
strikes them all. A ratio is the median of the rounds' ratios; brackets hold the lowest and the highest.
extras/contenders.py has the ways that are compared, the tutorial's first.
"""

import contextlib
import functools
import gc
import glob
import importlib.metadata
import importlib.util
import io
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock

import numpy as np
import torch

import tinystories
from configurator import InputError, options, override
from devices import device_name, find_device, find_dtype, peak_flops, synchronize
from extras.contenders import generating_ways, our_model, training_step, training_ways
from extras.fit import memory, print_fit
from model import ModelArgs, Transformer
from tinystories import Task, read_json, write_json
from tokenizer import Tokenizer

only = "train,sample,tokenize,load"  # what to measure
fit = False  # only print how much memory a step of training needs
gpu = False  # only write a report on a GPU, in 9 minutes at most: see extras/gpu_report.py
toy = False  # with gpu: at a size that a CPU does in a minute, to see whether the report works
out = "bench.json"  # what to write; with gpu the default is gpu_report.md
rounds = 5  # measurements of each thing
max_seconds = 0  # of this program, after which no other way is tried out; 0: no limit
device = "auto"  # auto is cuda, mps or cpu, the first that is there; for fit, auto is cuda
dtype = "bfloat16"  # float32 | bfloat16 | float16: of training, where the device is fast at it
optimizer = "adamw"  # adamw | muon: for fit; both are measured
compile = "auto"  # auto | true | false: measure the compiled ways, too
transformers = True  # measure the transformers library, too, where it is installed
dim = 288  # width
n_layers = 8  # blocks
n_heads = 8  # query heads
n_kv_heads = 4  # key/value heads
multiple_of = 32  # the feed-forward layer's width is rounded up to a multiple of this
vocab_size = 4096  # ids
max_seq_len = 256  # tokens in a sequence
batch_size = 8  # sequences in a micro-batch
gradient_accumulation_steps = 4  # micro-batches in a step
stories = "1,8"  # how many stories are written at a time
new_tokens = 200  # tokens that a story gets
data_dir = "data"  # where stories may lie
gigabytes = 2.0  # size of the shards whose reading is measured

BEGAN = time.perf_counter()


def now():
    """Seconds, when the device has done what it was given."""
    synchronize(device)
    return time.perf_counter()


def interleave(contenders):
    """{name: work, which returns how much it did} -> {name: [amount per second in each round]}, by turns."""
    rates = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            began = now()
            amount = work()
            rates[name].append(amount / (now() - began))
    return rates


def report(part, unit, rates, notes=None):
    """
    Print and return a row for each of `rates`, compared with the first, and one for each way that has only
    notes. `notes`: {name: {column: value}}.
    """
    notes = notes or {}
    base = next(iter(rates), None)
    rows = []
    for name in [*rates, *(name for name in notes if name not in rates)]:
        row = {"part": part, "what": name}
        print(f"{part:9} {name:34}", end="")
        if name in rates:
            values = rates[name]
            ratios = [a / b for a, b in zip(values, rates[base])]
            row |= {"unit": unit, "median": statistics.median(values)}
            row |= {"low": min(values), "high": max(values)}
            row |= {"against": base, "ratio": statistics.median(ratios)}
            row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
            print(f" {row['median']:9,.5g} {unit} [{row['low']:,.5g} .. {row['high']:,.5g}]", end="")
            print(f"  {row['ratio']:.2f} x [{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}]", end="")
        print("".join(f"; {key} {value}" for key, value in notes.get(name, {}).items()), flush=True)
        rows.append(row | notes.get(name, {}))
    return rows


def start(ways, warm_up):
    """
    Build each of `ways` and let it work once, by warm_up(work): ({name: work}, {name: notes}). A way that
    runs out of memory, or for which no time is left, has a note that says so, and no work.
    """
    cuda = device.startswith("cuda")
    works = {}
    notes = {}
    for name, build in ways.items():
        if max_seconds and time.perf_counter() - BEGAN > max_seconds:
            notes[name] = {"not run": "no time left"}
            continue
        others = torch.cuda.memory_allocated(device) if cuda else 0  # of the ways before it
        began = now()
        try:
            work = build()
            warm_up(work)
            notes[name] = {"first call, s": round(now() - began, 1)}
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
                warm_up(work)
                peak = torch.cuda.max_memory_allocated(device) - others
                notes[name]["peak memory, GB"] = round(peak / 1e9, 2)
            works[name] = work
        except torch.OutOfMemoryError:
            notes[name] = {"not run": "out of memory"}
        if name not in works:
            work = None
            gc.collect()  # what the way held
    return works, notes


def model_args():
    shape = {"dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    try:
        return ModelArgs(**shape, vocab_size=vocab_size, multiple_of=multiple_of, max_seq_len=max_seq_len)
    except ValueError as error:
        raise InputError(str(error)) from None


def step_shape():
    return gradient_accumulation_steps, batch_size, max_seq_len


def train():
    args = model_args()
    fast = find_dtype(dtype, device)
    ways = training_ways(args, step_shape(), device, fast, compile, transformers)
    steps, notes = start(ways, lambda step: step())
    works = {}
    for name, step in steps.items():
        began = now()
        step()
        count = math.ceil(0.3 / (now() - began))  # a step of a few milliseconds is too short to be measured
        works[name] = lambda step=step, count=count: sum(step() for _ in range(count))
    rates = interleave(works)
    with torch.device("meta"):
        model = Transformer(args)
    for name, values in rates.items():
        mfu = model.estimate_mfu(statistics.median(values), peak_flops(device_name(device)), max_seq_len)
        if mfu:
            notes[name]["MFU"] = round(mfu, 3)
        if name.startswith("train.py") and device.startswith("cuda"):
            parts = memory(args, batch_size, fast, name.split(", ")[1])
            total = sum(part["compiled" in name] for part in parts.values())
            notes[name]["memory by --fit, GB"] = round(total / 1e9, 2)
    return report("train", "tokens/s", rates, notes)


def sample():
    """Stories, so many at a time. The tutorial writes one after the other: its rate is that of one."""
    prompt = torch.arange(1, 17, device=device)[None]  # 16 ids
    ways = {}
    for count in map(int, stories.split(",")):
        for name, build in generating_ways(model_args(), device, compile, transformers).items():

            def build_work(build=build, count=count):
                write = build()
                x = prompt.expand(count, -1).contiguous()
                return lambda new=new_tokens: write(x, new).shape[0] * new

            if count == 1 or not name.startswith("the tutorial"):
                ways[f"{name}, {count}"] = build_work
    works, notes = start(ways, lambda work: work(min(5, new_tokens)))
    for name, work in works.items():
        count = int(name.split()[-1])
        rates = interleave({"first": functools.partial(work, 1)})["first"]
        notes[name]["first token, ms"] = round(1000 * count / statistics.median(rates), 1)
    return report("sample", "tokens/s", interleave(works), notes)


def baseline_shard(job, tok, dtype):
    """tinystories.process_shard without its word cache."""
    story_by_story = lambda tok, dtype: lambda text: np.array(tok.encode(text), dtype).tobytes()  # noqa: E731
    with unittest.mock.patch.object(tinystories, "text_encoder", story_by_story):
        return tinystories.process_shard(job, tok, dtype)


def read_stories(folder):
    """The stories and the tokenizer of data_dir, or of new, synthetic ones."""
    at = data_dir
    if not os.path.exists(os.path.join(at, f"tok{vocab_size}.model")):
        print("no stories with a tokenizer in data_dir: synthetic ones")
        at = folder
        for words in (["synthesize", "--megabytes=8"], ["train_vocab", f"--vocab_size={vocab_size}"]):
            script = [sys.executable, tinystories.__file__, *words, f"--data_dir={folder}"]
            subprocess.run(script, check=True)
    paths = glob.glob(os.path.join(glob.escape(at), "TinyStories_all_data", "data*.json"))
    texts = [story for path in sorted(paths) for story in read_json(path)]
    return texts, os.path.join(at, f"tok{vocab_size}.model")


def tokenize():
    """What pretokenize does, from JSON to a shard, against sentencepiece called for every story."""
    cores = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        texts, tokenizer = read_stories(folder)
        tok = Tokenizer(tokenizer)
        jobs = []
        for i in range(cores):  # one for each core, as large as they come
            path = os.path.join(folder, f"stories{i}.json")
            write_json(path, texts[i::cores])
            jobs.append({"name": f"data{i:02}", "path": path})
        megabytes = sum(os.path.getsize(job["path"]) for job in jobs) / 1e6
        made = {}  # the ids of each way

        def here(name, work):
            """On one core, in this process: encoding alone, which begins with an empty cache of words."""
            tinystories.text_encoder.cache_clear()
            made[name] = [np.frombuffer(work(job, tok, "uint16")[0], "<u2") for job in jobs]
            return megabytes

        def command(name):
            """As pretokenize does it, with the start of its processes."""
            target = os.path.join(folder, "shards")
            shutil.rmtree(target, ignore_errors=True)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                tinystories.write_shards(target, jobs, tinystories.process_shard, tok, tokenizer, cores)
            made[name] = [np.fromfile(os.path.join(target, f"{job['name']}.bin"), "<u2") for job in jobs]
            return megabytes

        one, ours, all_cores = "sentencepiece, 1 core", "pretokenize, 1 core", f"pretokenize, {cores} cores"
        contenders = {
            one: functools.partial(here, one, baseline_shard),
            ours: functools.partial(here, ours, tinystories.process_shard),
            all_cores: functools.partial(command, all_cores),
        }
        for run in contenders.values():
            run()
        rates = interleave(contenders)
        base = made[one]
        same = {name: all(map(np.array_equal, ids, base)) for name, ids in made.items()}
        more = {name: {"same ids": same[name], "MB": round(megabytes, 1)} for name in made}
        return report("tokenize", "MB/s", rates, more)


def load():
    """Batches of a large set of shards, against the micro-batches that training reads in the same time."""
    model = our_model(model_args(), device)
    status = "/proc/self/status"  # RssAnon: kB that are this process's alone, not mapped from files
    own = lambda: int(re.search(r"RssAnon:\s+(\d+)", open(status).read())[1]) / 1000  # noqa: E731
    optimizers = [model.configure_optimizers(0.1, 5e-4, (0.9, 0.95))]
    step = training_step(model, model, optimizers, find_dtype(dtype, device), step_shape(), device)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(11):  # files with holes: they take no room on the disk
            with open(os.path.join(folder, f"data{i:02}.bin"), "wb") as f:
                f.truncate(int(gigabytes * 1e9 / 10) // 2 * 2 if i else 1_000_000)
        write_json(os.path.join(folder, "meta.json"), {"dtype": "uint16", "vocab_size": vocab_size})
        shape = {"max_seq_len": max_seq_len, "vocab_size": vocab_size, "vocab_source": folder}
        batches = Task.iter_batches(batch_size, device, split="train", **shape)
        read = lambda count=1000: sum(1 for _ in zip(range(count), batches))  # noqa: E731
        learn = lambda: step() / batch_size / max_seq_len  # noqa: E731
        read()
        learn()
        rates = interleave({"what training reads": learn, "Task.iter_batches": read})
        held = [own(), read(5000) and own()]
    share = 100 * statistics.median(a / b for a, b in zip(*rates.values()))
    notes = {"share of a step, %": round(share, 2), "GB": gigabytes, "MB grown": held[1] - held[0]}
    return report("load", "batches/s", rates, {"Task.iter_batches": notes})


def main():
    parts = {"train": train, "sample": sample, "tokenize": tokenize, "load": load}
    if not set(only.split(",")) <= set(parts):
        raise InputError(f"--only={only}: the parts are {', '.join(parts)}")
    about = {"device": device_name(device), "machine": platform.processor() or platform.machine()}
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"python": platform.python_version(), "dtype": find_dtype(dtype, device)}
    if transformers:
        about["transformers"] = importlib.metadata.version("transformers")
    print(about)
    rows = []
    for part in only.split(","):
        rows += parts[part]()
        torch._dynamo.reset()
        write_json(out, {"about": about, "config": options(globals()), "rows": rows})


if __name__ == "__main__":
    given = override(globals())
    if fit:
        print_fit(model_args(), batch_size, dtype, optimizer, "cuda" if device == "auto" else device)
        sys.exit()
    device = find_device(device)
    transformers = transformers and importlib.util.find_spec("transformers") is not None
    torch.set_float32_matmul_precision("high")
    if gpu:
        from extras.gpu_report import write_report

        write_report(given.get("out", "gpu_report.md"), device, toy or not device.startswith("cuda"))
    else:
        main()
