"""
How fast the course trains and samples, beside what exists, measured side by side on this machine.

Writes bench.json, and a table to the terminal

    python -m extras.bench                              both parts, at the tutorial's size
    python -m extras.bench --only=sample                one of them: train or sample

On a CUDA machine, where rows also give MFU (model FLOPs utilisation) and peak memory:
    python -m extras.bench --batch_size=64
    python -m extras.bench --only=train --dim=768 --n_layers=12 --n_heads=12 --n_kv_heads=4 \\
        --vocab_size=6144 --max_seq_len=512 --batch_size=64 --gradient_accumulation_steps=2    80 million

Rows of a part are measured in turn (A B C A B C ...) after a warm-up, so that what else the machine does
strikes them all. A ratio is the median of the rounds' ratios; brackets hold the lowest and the highest.

"The tutorial's way": float32 on a CPU, bfloat16 autocast on a GPU, nothing compiled, a loss.item() a step; a
generate() that reads the whole text again for each token. The transformers library is measured at the same
shape, where it is installed.
"""

import functools
import gc
import importlib.util
import json
import math
import platform
import statistics
import time

import torch

from configurator import InputError, atomic_write, options, override
from devices import (
    autocast,
    compile_error,
    device_name,
    find_device,
    find_dtype,
    peak_flops,
    try_compile,
)
from extras.causal_blocks import use_causal_blocks
from extras.fast_decode import compile_decoding
from extras.muon import configure_muon
from model import ModelArgs, Transformer

only = "train,sample"  # what to measure
out = "bench.json"  # what to write
rounds = 5  # measurements of each way
device = "auto"  # auto is cuda, mps or cpu, the first that is there
dtype = "bfloat16"  # float32 | bfloat16 | float16: of training, where the device is fast at it
compile = "auto"  # auto | true | false: measure the compiled ways, too; auto does where torch.compile works
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

HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None


def now():
    """Seconds, when the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def start(ways, warm_up):
    """
    Build each of `ways` ({name: build}) and let it work once, by warm_up(work). Returns {name: work} and
    {name: notes}. A way that runs out of memory has a note that says so, and no work.
    """
    cuda = device.startswith("cuda")
    works = {}
    notes = {}
    for name, build in ways.items():
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
            work = None
        gc.collect()  # what a way held that is not run
    return works, notes


def interleave(works):
    """{name: work, which returns how much it did} -> {name: [amount per second in each round]}, by turns."""
    rates = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = now()
            amount = work()
            rates[name].append(amount / (now() - began))
    return rates


def report(part, rates, notes):
    """Print and return a row for each of `notes` ({name: {column: value}}); ratios are to the first rate."""
    base = next(iter(rates), None)
    rows = []
    for name, note in notes.items():
        row = {"part": part, "what": name, **note}
        print(f"{part:9} {name:34}", end="")
        if name in rates:
            values = rates[name]
            ratios = [a / b for a, b in zip(values, rates[base])]
            row |= {"tokens/s": statistics.median(values), "low": min(values), "high": max(values)}
            row |= {"against": base, "ratio": statistics.median(ratios)}
            row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
            print(f" {row['tokens/s']:9,.5g} tokens/s [{row['low']:,.5g} .. {row['high']:,.5g}]", end="")
            print(f"  {row['ratio']:.2f} x [{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}]", end="")
        print("".join(f"; {key} {value}" for key, value in note.items()), flush=True)
        rows.append(row)
    return rows


def model_args():
    try:
        return ModelArgs(
            dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, vocab_size=vocab_size,
            multiple_of=multiple_of, max_seq_len=max_seq_len,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None


def our_model():
    torch.manual_seed(0)
    return Transformer(model_args()).to(device)


def llama():
    """The same shape in the transformers library."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=dim, intermediate_size=model_args().hidden_dim,
        num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=n_kv_heads,
        max_position_embeddings=max_seq_len, tie_word_embeddings=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device)


def plain_dtype():
    return "bfloat16" if device.startswith("cuda") else "float32"


def compile_choices():
    """[(name, value of train.py's option compile)] of the ways that are measured."""
    choices = [("eager", "false"), ("compiled", "true")]
    with_compiled = compile == "true" or (compile == "auto" and not compile_error(device))
    return choices if with_compiled else choices[:1]


def training_step(loss_of, model, optimizers, dtype, wait=False):
    """
    A function that does a step of training as train.py does, and returns the number of its tokens.
    loss_of(x, y): the forward pass. wait: for the loss, at every step.
    """
    x = torch.randint(vocab_size, (batch_size, max_seq_len), device=device)
    y = torch.randint(vocab_size, (batch_size, max_seq_len), device=device)
    scaler = torch.amp.GradScaler(device.split(":")[0], enabled=dtype == "float16")

    def step():
        for _ in range(gradient_accumulation_steps):
            with autocast(device, dtype):
                loss = loss_of(x, y) / gradient_accumulation_steps
            scaler.scale(loss).backward()
        if wait:
            loss.item()
        for o in optimizers:
            scaler.unscale_(o)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            if not wait:
                o.found_inf = (~grad_norm.isfinite()).float()
            o.step()
        scaler.update()
        model.zero_grad(set_to_none=True)
        return gradient_accumulation_steps * batch_size * max_seq_len

    return step


def training_ways():
    """{name: build}; build() makes the model and returns its training_step."""
    fast = find_dtype(dtype, device)

    def tutorial():
        model = our_model()
        adamw = torch.optim.AdamW(model.parameters(), 5e-4, fused=device.startswith("cuda"))
        return training_step(model, model, [adamw], plain_dtype(), wait=True)

    def ours(optimizer, choice):
        model = our_model()
        settings = (0.1, 5e-4, (0.9, 0.95))
        if optimizer == "muon":
            optimizers = [configure_muon(model, *settings, choice)]
        else:
            optimizers = [model.configure_optimizers(*settings)]
        if device.startswith("cpu") and fast == "bfloat16":
            use_causal_blocks(model)
        return training_step(try_compile(model, choice, device), model, optimizers, fast)

    def theirs(choice):
        model = llama()
        forward = try_compile(model, choice, device)
        adamw = torch.optim.AdamW(model.parameters(), 5e-4, fused=True)

        def loss_of(x, y):
            return forward(input_ids=x, labels=x, use_cache=False).loss

        return training_step(loss_of, model, [adamw], fast)

    ways = {"the tutorial's way": tutorial}
    for name, choice in compile_choices():
        for optimizer in ("adamw", "muon"):
            ways[f"train.py, {optimizer}, {name}"] = functools.partial(ours, optimizer, choice)
        if HAS_TRANSFORMERS:
            ways[f"transformers, adamw, {name}"] = functools.partial(theirs, choice)
    return ways


def train():
    steps, notes = start(training_ways(), lambda step: step())
    works = {}
    for name, step in steps.items():
        began = now()
        step()
        count = math.ceil(0.3 / (now() - began))  # a step of a few milliseconds is too short to be measured
        works[name] = lambda step=step, count=count: sum(step() for _ in range(count))
    rates = interleave(works)
    with torch.device("meta"):
        model = Transformer(model_args())
    for name, values in rates.items():
        peak = peak_flops(device_name(device), dtype)
        mfu = model.estimate_mfu(statistics.median(values), peak, max_seq_len)
        if mfu:
            notes[name]["MFU"] = round(mfu, 3)
    return report("train", rates, notes)


@torch.inference_mode()
def tutorial_generate(model, idx, count, temperature=0.8, top_k=300):
    """Each new token from a pass over the whole text, in the dtype that the tutorial takes."""
    for _ in range(count):
        with autocast(device, plain_dtype()):
            logits = model(idx[:, -max_seq_len:])[:, -1].float() / temperature
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        probs = logits.masked_fill(logits < kth, -float("inf")).softmax(dim=-1)
        idx = torch.cat((idx, torch.multinomial(probs, num_samples=1)), dim=1)
    return idx


def sampling_ways():
    """{name: build}; build() makes the model and returns write(prompts (B, T), new) -> ids (B, T + new)."""

    def tutorial():
        return functools.partial(tutorial_generate, our_model().eval())

    def ours(dtype, choice):
        model = our_model().eval()
        for p in model.parameters():  # not RoPE's tables, which stay in float32
            p.data = p.data.to(getattr(torch, dtype))
        if choice == "true":
            compile_decoding(model, device)
        return lambda x, n: model.generate(x, n, 0.8, 300)

    def theirs(dtype):
        model = llama().to(getattr(torch, dtype)).eval()
        settings = {"do_sample": True, "temperature": 0.8, "top_k": 300}
        return lambda x, n: model.generate(x, max_new_tokens=n, min_new_tokens=n, **settings)

    fast = find_dtype("bfloat16", device)
    dtypes = ("float32", fast) if device.startswith("cuda") else ("float32", "bfloat16")
    ways = {"the tutorial's way": tutorial}
    for name, choice in compile_choices():
        for dtype in dtypes:
            way = f"sample.py, {dtype}" + (", compiled" if name == "compiled" else "")
            ways[way] = functools.partial(ours, dtype, choice)
    if HAS_TRANSFORMERS:
        ways[f"transformers, {fast}"] = functools.partial(theirs, fast)
    return ways


def sample():
    """Stories, so many at a time. The tutorial writes one after the other: its rate is that of one."""
    prompt = torch.arange(1, 17, device=device)[None]  # 16 ids
    ways = {}
    for count in map(int, stories.split(",")):
        for name, build in sampling_ways().items():

            def build_work(build=build, count=count):
                write = build()
                x = prompt.expand(count, -1).contiguous()
                return lambda new=new_tokens: write(x, new).shape[0] * new

            if count == 1 or name != "the tutorial's way":
                ways[f"{name}, {count}"] = build_work
    works, notes = start(ways, lambda work: work(min(5, new_tokens)))
    return report("sample", interleave(works), notes)


def main():
    parts = {"train": train, "sample": sample}
    if not set(only.split(",")) <= set(parts):
        raise InputError(f"--only={only}: the parts are {', '.join(parts)}")
    about = {"device": device_name(device), "machine": platform.processor() or platform.machine()}
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"python": platform.python_version(), "dtype": find_dtype(dtype, device)}
    print(about)
    rows = []
    for part in only.split(","):
        rows += parts[part]()
        torch._dynamo.reset()
        with atomic_write(out) as f:
            json.dump({"about": about, "config": options(globals()), "rows": rows}, f, indent=1)


if __name__ == "__main__":
    override(globals())
    device = find_device(device)
    torch.set_float32_matmul_precision("high")
    main()
