"""
How fast the course is, beside what exists, measured side by side on this machine.

Reads  for tokenize: the stories and the tokenizer in data_dir, or synthetic ones where there are none
Writes bench.json, and a table to the terminal

    python -m extras.bench                              all, at the tutorial's size
    python -m extras.bench --only=sample,load           parts of it: train, sample, tokenize, load

On a CUDA machine, where rows also give MFU (model FLOPs utilisation) and peak memory:
    python -m extras.bench --only=train,sample --batch_size=64
    python -m extras.bench --only=train --dim=768 --n_layers=12 --n_heads=12 --n_kv_heads=4 \\
        --vocab_size=6144 --max_seq_len=512 --batch_size=64 --gradient_accumulation_steps=2    80 million

Rows of a part are measured in turn (A B C A B C ...) after a warm-up, so that what else the machine does
strikes them all. A ratio is the median of the rounds' ratios; brackets hold the lowest and the highest.

"The tutorial's way": float32 on a CPU, bfloat16 autocast on a GPU, nothing compiled, a loss.item() a step; a
generate() that reads the whole text again for each token.
"""

import contextlib
import glob
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

import tinystories
from configurator import InputError, options, override
from devices import (
    autocast,
    compile_error,
    device_name,
    find_device,
    find_dtype,
    peak_flops,
    try_compile,
)
from extras.fast_decode import compile_decoding
from model import ModelArgs, Transformer
from tinystories import Task, read_json, write_json
from tokenizer import Tokenizer

only = "train,sample,tokenize,load"  # what to measure
out = "bench.json"  # what to write
rounds = 5  # measurements of each thing
device = "auto"  # auto is cuda, mps or cpu, the first that is there
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
new_tokens = 200  # tokens that a story gets
data_dir = "data"  # where stories may lie
gigabytes = 2.0  # size of the shards whose reading is measured


def now():
    """Seconds, when the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(contenders):
    """{name: work, which returns how much it did} -> {name: [amount a second in each round]}, by turns."""
    rates = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            began = now()
            amount = work()
            rates[name].append(amount / (now() - began))
    return rates


def report(part, unit, rates, more=None):
    """Print and return a row for each of `rates`, compared with the first; `more` has further columns."""
    rows, base = [], next(iter(rates))
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[base])]
        notes = (more or {}).get(name, {})
        middle, ratio = statistics.median(values), statistics.median(ratios)
        low, high, least, most = min(values), max(values), min(ratios), max(ratios)
        row = {"part": part, "what": name, "unit": unit, "median": middle, "low": low, "high": high}
        rows.append(row | {"against": base, "ratio": ratio, "ratio_low": least, "ratio_high": most} | notes)
        print(f"{part:9} {name:34} {middle:9,.5g} {unit} [{low:,.5g} .. {high:,.5g}]", end="")
        print(f"  {ratio:.2f} x [{least:.2f} .. {most:.2f}]", end="")
        print("".join(f"; {k} {v}" for k, v in notes.items()), flush=True)
    return rows


def our_model():
    torch.manual_seed(0)
    shape = {"dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    args = ModelArgs(vocab_size=vocab_size, multiple_of=multiple_of, max_seq_len=max_seq_len, **shape)
    return Transformer(args).to(device)


def llama():
    """The same shape in the transformers library."""
    from transformers import LlamaConfig, LlamaForCausalLM

    a = our_model().args
    config = LlamaConfig(
        vocab_size=a.vocab_size, hidden_size=a.dim, intermediate_size=a.hidden_dim, eos_token_id=None,
        num_hidden_layers=a.n_layers, num_attention_heads=a.n_heads, num_key_value_heads=a.n_kv_heads,
        max_position_embeddings=a.max_seq_len, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device)


def step_of(loss_of, optimizers, dtype, wait=False):
    """A function that does a step of training as train.py does, and returns its tokens; `wait`: see above."""
    x, y = (torch.randint(vocab_size, (batch_size, max_seq_len), device=device) for _ in range(2))
    weights = [p for o in optimizers for group in o.param_groups for p in group["params"]]

    def step():
        for _ in range(gradient_accumulation_steps):
            with autocast(device, dtype):
                loss = loss_of(x, y) / gradient_accumulation_steps
            loss.backward()
        if wait:
            loss.item()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        return gradient_accumulation_steps * batch_size * max_seq_len

    return step


def train():
    plain, fast = "bfloat16" if device.startswith("cuda") else "float32", find_dtype("bfloat16", device)
    adamw = lambda m: [torch.optim.AdamW(m.parameters(), 5e-4, fused=device.startswith("cuda"))]  # noqa: E731
    model = our_model()
    contenders = {"the tutorial's way": step_of(lambda x, y: model(x, y), adamw(model), plain, wait=True)}
    for name, choice in (("eager", "false"), ("compiled", compile)):
        ours = our_model()
        optimizers = [ours.configure_optimizers(0.1, 5e-4, (0.9, 0.95))]
        f = try_compile(ours, choice, device)
        if f is not ours or name == "eager":
            contenders[f"train.py, {name}"] = step_of(lambda x, y, f=f: f(x, y), optimizers, fast)
        if transformers:
            theirs = llama()
            g = try_compile(theirs, choice, device)
            if g is not theirs or name == "eager":
                loss = lambda x, y, g=g: g(input_ids=x, labels=x, use_cache=False).loss  # noqa: E731
                contenders[f"transformers, {name}"] = step_of(loss, adamw(theirs), fast)
    more = {}
    for name, work in contenders.items():
        began = now()
        work()
        more[name] = {"first step, s": round(now() - began, 1)}
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            work()
            more[name]["peak memory, GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    rates = interleave(contenders)
    for name, values in rates.items():
        mfu = model.estimate_mfu(statistics.median(values), peak_flops(device_name(device)), max_seq_len)
        if mfu:
            more[name]["MFU"] = round(mfu, 3)
    return report("train", "tokens/s", rates, more)


@torch.inference_mode()
def tutorial_generate(model, idx, count, temperature=0.8, top_k=300):
    """Each new token from a pass over the whole text, in the dtype that the tutorial takes."""
    for _ in range(count):
        with autocast(device, "bfloat16" if device.startswith("cuda") else "float32"):
            logits = model(idx[:, -max_seq_len:])[:, -1].float() / temperature
        kth = logits.topk(min(top_k, vocab_size)).values[:, -1:]
        probs = logits.masked_fill(logits < kth, -float("inf")).softmax(dim=-1)
        idx = torch.cat((idx, torch.multinomial(probs, num_samples=1)), dim=1)
    return idx


def generators(stories):
    """{name: f(prompts (B, T), new tokens)}: the ways to write that many stories at a time."""
    ways, found = [("float32", False), ("bfloat16", False)], {}
    if compile != "false" and not compile_error(device):
        ways += [("float32", True), ("bfloat16", True)]
    for kind, compiled in ways:
        model = our_model().eval()
        for p in model.parameters():
            p.data = p.data.to(getattr(torch, kind))
        if compiled:
            compile_decoding(model, device)
        name = f"sample.py, {kind}{', compiled' * compiled}"
        found[f"{name}, {stories}"] = lambda x, n, model=model: model.generate(x, n, 0.8, 300)
    if transformers:
        generate = llama().eval().generate
        settings = {"do_sample": True, "temperature": 0.8, "top_k": 300}
        count = lambda n: {"max_new_tokens": n, "min_new_tokens": n}  # noqa: E731
        found[f"transformers, float32, {stories}"] = lambda x, n: generate(x, **count(n), **settings)
    return found


def sample():
    """One story, and eight at a time. The tutorial writes several one after the other: its rate is one."""
    model = our_model().eval()
    ways = {"the tutorial's way, 1": lambda x, n: tutorial_generate(model, x, n)}
    ways |= generators(1) | generators(8)
    prompt, more, works = torch.arange(1, 17, device=device)[None], {}, {}  # 16 ids
    for name, write in ways.items():
        stories = int(name.split()[-1])
        x = prompt.expand(stories, -1).contiguous()
        began = now()
        write(x, 3)
        more[name] = {"first call, s": round(now() - began, 1)}
        one = interleave({"": lambda write=write, x=x: len(write(x, 1))})[""]
        more[name]["first token, ms"] = round(1000 * stories / statistics.median(one), 1)
        works[name] = lambda write=write, x=x: len(write(x, new_tokens)) * new_tokens
    return report("sample", "tokens/s", interleave(works), more)


def baseline_shard(job, tok, dtype):
    """tinystories.process_shard without its word cache; runs in a process of the pool."""
    tinystories.text_encoder = lambda tok, dtype: lambda text: np.array(tok.encode(text), dtype).tobytes()
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
    paths = glob.glob(os.path.join(glob.escape(at), "TinyStories_all_data", "*.json"))
    stories = [story for path in sorted(paths) for story in read_json(path)]
    return stories, os.path.join(at, f"tok{vocab_size}.model")


def tokenize():
    """What pretokenize does, from JSON to a shard, against sentencepiece called for every story."""
    cores = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        stories, tokenizer = read_stories(folder)
        tok, jobs = Tokenizer(tokenizer), []
        for i in range(cores):  # one for each core, as large as they come
            path = os.path.join(folder, f"stories{i}.json")
            write_json(path, stories[i::cores])
            jobs.append({"name": f"data{i:02}", "path": path})
        megabytes = sum(os.path.getsize(job["path"]) for job in jobs) / 1e6
        made, contenders = {}, {}
        plain, fast = baseline_shard, tinystories.process_shard
        ways = {"sentencepiece, 1 core": (plain, 1), "pretokenize, 1 core": (fast, 1)}
        for name, (work, workers) in (ways | {f"pretokenize, {cores} cores": (fast, cores)}).items():

            def run(name=name, work=work, workers=workers):
                target = os.path.join(folder, name)
                shutil.rmtree(target, ignore_errors=True)
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    tinystories.write_shards(target, jobs, work, tok, tokenizer, workers)
                made[name] = [np.fromfile(os.path.join(target, f"{job['name']}.bin"), "<u2") for job in jobs]
                return megabytes

            run()
            contenders[name] = run
        rates, base = interleave(contenders), made["sentencepiece, 1 core"]
        same = {name: all(map(np.array_equal, ids, base)) for name, ids in made.items()}
        more = {name: {"same ids": same[name], "MB": round(megabytes, 1)} for name in made}
        return report("tokenize", "MB/s", rates, more)


def load():
    """Batches of a large set of shards, against the micro-batches that training reads in the same time."""
    model = our_model()
    status = "/proc/self/status"  # RssAnon: kB that are this process's alone, not mapped from files
    memory = lambda: int(re.search(r"RssAnon:\s+(\d+)", open(status).read())[1]) / 1000  # noqa: E731
    optimizers = [model.configure_optimizers(0.1, 5e-4, (0.9, 0.95))]
    step = step_of(lambda x, y: model(x, y), optimizers, find_dtype("bfloat16", device))
    with tempfile.TemporaryDirectory() as folder:
        for i in range(11):  # files with holes: they take no room on the disk
            with open(os.path.join(folder, f"data{i:02}.bin"), "wb") as f:
                f.truncate(int(gigabytes * 1e9 / 10) // 2 * 2 if i else 1_000_000)
        write_json(os.path.join(folder, "meta.json"), {"dtype": "uint16", "vocab_size": vocab_size})
        shape = {"max_seq_len": max_seq_len, "vocab_size": vocab_size, "vocab_source": folder}
        batches = Task.iter_batches(batch_size, device, split="train", **shape)
        read = lambda count=1000: sum(1 for _ in zip(range(count), batches))  # noqa: E731
        train = lambda: step() / batch_size / max_seq_len  # noqa: E731
        read(), train()
        rates = interleave({"what training reads": train, "Task.iter_batches": read})
        held = [memory(), read(5000) and memory()]
    share = 100 * statistics.median(a / b for a, b in zip(*rates.values()))
    notes = {"share of a step, %": round(share, 2), "GB": gigabytes, "MB grown": held[1] - held[0]}
    return report("load", "batches/s", rates, {"Task.iter_batches": notes})


def main():
    rows, parts = [], {"train": train, "sample": sample, "tokenize": tokenize, "load": load}
    if not set(only.split(",")) <= set(parts):
        raise InputError(f"--only={only}: the parts are {', '.join(parts)}")
    about = {"device": device_name(device), "machine": platform.processor() or platform.machine()}
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"python": platform.python_version(), "dtype": find_dtype("bfloat16", device)}
    if transformers:
        about["transformers"] = importlib.metadata.version("transformers")
    print(about)
    for part in only.split(","):
        rows += parts[part]()
        torch._dynamo.reset()
        write_json(out, {"about": about, "config": options(globals()), "rows": rows})


if __name__ == "__main__":
    override(globals())
    device = find_device(device)
    transformers = transformers and importlib.util.find_spec("transformers") is not None
    torch.set_float32_matmul_precision("high")
    main()
