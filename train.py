"""
Pretraining (or fine-tuning, which is pretraining with some targets masked): shards of ids -> a model.

Reads  a folder of shards (tinystories.py pretokenize; prepare_data.py pretokenize, pretokenize_sft)
Writes output/ckpt.pt    the weights that were best on the validation split; what sample.py reads
       output/last.pt    the newest state, every save_interval steps and at the end; what resuming reads
       output/log.jsonl  a JSON object for each logged step and each evaluation
       output/loss.png   where matplotlib is installed

    python train.py --batch_size=8                     the tutorial's model: 8.5M weights, 100,000 steps
    python train.py --eval_only --init_from=output/ckpt.pt    only measure a checkpoint
    python train.py --init_from=resume                 go on, with the checkpoint's knobs but for those given
    torchrun --standalone --nproc_per_node=8 train.py  on 8 GPUs: the same global batches, shared among them
    TORCH_SHARE_RDZV_TCP_STORE=0 torchrun --nnodes=2 --nproc_per_node=8 --max_restarts=3 --rdzv_id=NAME \\
        --rdzv_backend=c10d --rdzv_endpoint=HOST:29400 train.py    on each of 2 machines; HOST is one of them

Ctrl-C (or SIGTERM) ends the run after the step or evaluation at hand, saves it, and says how to go on; so
does one sent to torchrun, which allows 30 seconds for it. `--help` lists the knobs. What is promised:
- A run stopped at any moment, by `kill -9` or a power cut too, goes on from its last saved step and ends with
  the weights, bit by bit, and the log of an undisturbed one: on a CPU, in float32, with one process and one
  number of threads. On a GPU, or with another number of processes, it is the same run within rounding.
- Under torchrun a process that dies ends the others; with --max_restarts=3 they start again, and go on from
  last.pt if this very torchrun wrote it (--standalone, or an --rdzv_id not used before, tells). Several
  machines must see one out_dir and one data_dir, and share no store, or a restart may look for the dead.
  A machine that vanishes without closing its connections is noticed only when torch's own time runs out
  (10 minutes with NCCL).
- A step whose gradients are not finite changes nothing and is counted; three in a row (in float16, where the
  scaler needs some to find its scale: with an infinite loss, or forty) end the run, and last.pt stays.
"""

import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
import time

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch: see docs/experiments.md, "threads that wait"

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import model as M
from checkpoints import build_model, load_checkpoint, newest_state, plain_args, save_checkpoint
from configurator import atomic_write, given, need, override, remove_leftovers
from devices import autocast, device_name, find_device, find_dtype, join_processes, try_compile
from extras.plot import draw
from shards import read_meta
from tinystories import Task, shard_folder
from tokenizer import Tokenizer

# what is written, and how often
out_dir = "output"  # folder for checkpoints and the log
eval_interval = 2000  # steps between evaluations
log_interval = 1  # steps between two rows of the log
save_interval = 500  # steps between two states of last.pt
eval_iters = 100  # batches of each split that an evaluation averages over
eval_only = False  # evaluate once and stop
always_save_checkpoint = False  # write ckpt.pt at every evaluation, not only at the best
init_from = "scratch"  # scratch | resume | PATH: random weights, the run in out_dir, a checkpoint's weights
wandb_log = False  # also send the log to Weights & Biases
# data
batch_size = 8  # sequences in a micro-batch
max_seq_len = 256  # tokens in a sequence
vocab_source = "custom"  # llama2 | custom | PATH: data/tok0, data/tok<vocab_size>, or a folder of shards
vocab_size = 4096  # which tokenizer's shards; of a folder, what its meta.json says
data_dir = "data"  # where they lie
# model
dim = 288  # width
n_layers = 8  # blocks
n_heads = 8  # query heads
n_kv_heads = 4  # key/value heads
multiple_of = 32  # the feed-forward layer's width is rounded up to a multiple of this
dropout = 0.0  # probability; for pretraining on much text 0 is good
# optimizer
optimizer = "adamw"  # adamw | muon: Muon for the matrices of the blocks, AdamW for the rest
gradient_accumulation_steps = 4  # micro-batches in a step, over all processes
learning_rate = 5e-4  # the schedule's highest
max_iters = 100000  # steps
weight_decay = 1e-1  # on matrices only
beta1 = 0.9  # AdamW's memory of the gradient
beta2 = 0.95  # and of its square
grad_clip = 1.0  # gradients longer than this are scaled down to it; 0 is off
# learning rate
decay_lr = True  # False: constant after the warmup
warmup_iters = 1000  # steps of linear warmup
schedule = "cosine"  # cosine | linear: half a cosine to 0; or constant, then linear to 0 over the last 40 %
# system
device = "auto"  # auto is cuda, mps or cpu, the first that is there; or name one: cuda:1
dtype = "bfloat16"  # float32 | bfloat16 | float16: of the matrix products, where the device is fast at it
compile = "auto"  # auto | true | false: torch.compile; auto falls back where it does not work
num_workers = 0  # processes that read ahead; a batch takes 0.1 ms to read, so 0 is enough
seed = 1337  # of the weights, the order of the data, and dropout

config = override(globals())


def say(text):
    """Print a line from the first process only, above the progress bar."""
    if rank == 0:
        tqdm.write(text)


# --------------------------------------------------------------------------------------------------------
# where we are: one process, or one of several

rank, world_size, device, restarts = join_processes(find_device(device))
checkpoint, last = None, os.path.join(out_dir, "last.pt")
torchrun_id = os.environ.get("TORCHELASTIC_RUN_ID", "")  # stays the same when torchrun starts us again
if restarts and os.path.exists(last):
    if load_checkpoint(last, mmap=True).get("torchrun_id") == torchrun_id:  # and not an older run's
        init_from = "resume"
if init_from == "resume":
    checkpoint = newest_state(out_dir)
    kept = {k: v for k, v in checkpoint.get("config", {}).items() if k in config and k not in given}
    kept = {k: v for k, v in kept.items() if k not in ("init_from", "out_dir", "device", "eval_only")}
    globals().update(kept)
    config |= kept
elif init_from != "scratch":
    checkpoint = load_checkpoint(init_from)

if gradient_accumulation_steps % world_size:
    raise ValueError(
        f"gradient_accumulation_steps={gradient_accumulation_steps} does not divide by {world_size} processes"
    )
accumulation = gradient_accumulation_steps // world_size  # a process's share: the global batch stays
wanted, dtype = dtype, find_dtype(dtype, device)
if wanted != dtype:
    say(f"{wanted} is slow on this {device}: taking {dtype}")

# --------------------------------------------------------------------------------------------------------
# data

folder = shard_folder(vocab_size, vocab_source, data_dir)
meta = read_meta(folder, vocab_size if vocab_source == "custom" or "vocab_size" in given else None)
config["vocab_size"] = vocab_size = meta.get("vocab_size", vocab_size)
if "max_seq_len" not in given:  # rows for fine-tuning have their length, a checkpoint's model its context
    known = checkpoint["model_args"].get("max_seq_len") if checkpoint else None
    config["max_seq_len"] = max_seq_len = meta.get("row_len") or known or max_seq_len
tokens_per_step = gradient_accumulation_steps * batch_size * max_seq_len
if checkpoint and checkpoint["model_args"]["vocab_size"] != vocab_size:
    raise ValueError(
        f"the model has {checkpoint['model_args']['vocab_size']} ids, {folder} has {vocab_size}"
    )

tok = None
if checkpoint and checkpoint.get("tokenizer"):
    tok = Tokenizer(checkpoint["tokenizer"])
elif "tokenizer" in meta:
    tok = Tokenizer(os.path.normpath(os.path.join(folder, meta["tokenizer"])))
if tok and tok.fingerprint() != meta.get("tokenizer_fingerprint", tok.fingerprint()):
    raise ValueError(f"{folder} was made with another tokenizer than {tok.name}")


def batches(split, start=0, order_seed=seed):
    """Endless (x, y) of (batch_size, max_seq_len); see Task.iter_batches."""
    source = {"vocab_size": vocab_size, "vocab_source": vocab_source, "data_dir": data_dir}
    what = {"split": split, "max_seq_len": max_seq_len, "seed": order_seed}
    return Task.iter_batches(batch_size, device, num_workers, start, **what, **source)


# --------------------------------------------------------------------------------------------------------
# model and optimizer

torch.manual_seed(seed)
torch.set_float32_matmul_precision("high")  # TF32 on CUDA
if checkpoint:
    raw_model = build_model(checkpoint, max_seq_len=max_seq_len, dropout=dropout)
else:
    shape = {"dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    limits = {"multiple_of": multiple_of, "max_seq_len": max_seq_len, "dropout": dropout}
    raw_model = M.Transformer(M.ModelArgs(vocab_size=vocab_size, **shape, **limits))
raw_model.to(device)
optimizers = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2), device, optimizer)
# float16 has no small numbers: the loss is scaled up, so that gradients do not become 0. In any dtype the
# scaler leaves out a step whose gradients are not finite.
scale = {} if dtype == "float16" else {"init_scale": 1.0, "growth_interval": 2**31 - 1}
scaler = torch.amp.GradScaler(device.split(":")[0], **scale)
step, best_val_loss = 0, math.inf
if init_from == "resume":
    step, best_val_loss = checkpoint["iter_num"], float(checkpoint["best_val_loss"])
    states = [checkpoint["optimizer"], checkpoint.get("muon")]
    if (states[1] is None) != (len(optimizers) == 1):
        raise ValueError(f"{out_dir} holds a run with another optimizer than {optimizer}")
    for o, state in zip(optimizers, states):
        o.load_state_dict(state)
    scaler.load_state_dict(checkpoint.get("scaler", {}) or scaler.state_dict())
    if "rng" in checkpoint:
        torch.set_rng_state(checkpoint["rng"]["torch"])
        if device.startswith("cuda") and "cuda" in checkpoint["rng"]:
            torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], device)
checkpoint = None  # its memory is needed

# The compiled model shares its weights with raw_model, which evaluates, samples and is saved: so no
# checkpoint ever has torch.compile's `_orig_mod.` in its names.
model = try_compile(raw_model, compile, device, say)
if dist.is_initialized():
    dist.all_gather_object(steps := [None] * world_size, step)
    if len(set(steps)) > 1:
        raise ValueError(f"the processes would go on at steps {steps}: let all machines see one {out_dir}")
    model = DistributedDataParallel(model, device_ids=[device] if device.startswith("cuda") else None)

say(
    f"{raw_model.num_params():,} weights; {gradient_accumulation_steps} micro-batches x {batch_size} "
    f"sequences x {max_seq_len} tokens = {tokens_per_step:,} tokens a step; {device_name(device)}, {dtype}"
)
if init_from == "resume":
    say(f"going on with step {step} of {out_dir}")


# --------------------------------------------------------------------------------------------------------
# the small functions


def get_lr(it):
    """The learning rate of step `it`: a linear warmup that does not begin at 0, then the schedule."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    done = (it - warmup_iters) / max(1, max_iters - warmup_iters)  # 0 .. 1
    return learning_rate * (
        (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else min(1, (1 - done) / 0.4)
    )


@torch.no_grad()
def evaluate():
    """{"train_loss", "val_loss", "val_bpb"}: means over eval_iters batches, shared among the processes."""
    raw_model.eval()
    result = {}
    # Fresh batches of the training data at every evaluation, the same ones of the validation data.
    for split, order_seed in (("train", seed + 1 + step), ("val", seed)):
        total = torch.zeros(2, dtype=torch.float64)
        for _, (x, y) in zip(range(rank, eval_iters, world_size), batches(split, order_seed=order_seed)):
            with autocast(device, dtype):
                loss = raw_model(x, y)[1]
            count = (y >= 0).sum().item()
            total += torch.tensor([loss.item() * count, count], dtype=torch.float64)
        if dist.is_initialized():
            total = total.to(torch.float32).to(device)
            dist.all_reduce(total)
        result[f"{split}_loss"] = (total[0] / total[1]).item()
    raw_model.train()
    if "splits" in meta:  # nats a token -> bits a byte, which does not depend on the tokenizer
        val = meta["splits"]["val"]
        result["val_bpb"] = result["val_loss"] / math.log(2) * val["tokens"] / val["bytes"]
    return result


def save(name):
    """Write a checkpoint: all that a resume needs, as plain types and tensors (torch.load's weights_only)."""
    if not all(p.isfinite().all() for p in raw_model.parameters()):
        return  # the older state is the better one
    os.fsync(log_file.fileno())  # a power cut must not lose the log of steps whose state is kept
    state = {
        "model": raw_model.state_dict(),
        "model_args": plain_args(raw_model.args),
        "config": config,
        "iter_num": step,
        "best_val_loss": best_val_loss,
        "optimizer": optimizers[0].state_dict(),
        "scaler": scaler.state_dict(),
        "rng": {"torch": torch.get_rng_state()},
        "tokenizer": tok.state() if tok else None,
        "torchrun_id": torchrun_id,
    }
    if len(optimizers) > 1:
        state["muon"] = optimizers[1].state_dict()
    if device.startswith("cuda"):
        state["rng"]["cuda"] = torch.cuda.get_rng_state(device)
    save_checkpoint(state, os.path.join(out_dir, name))


def log(row):
    if rank == 0:
        row = {k: v if math.isfinite(v) else None for k, v in row.items()}  # JSON knows no NaN
        log_file.write(json.dumps(row) + "\n")
        log_file.flush()
        if wandb_log:
            wandb.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])


def show_story():
    """What the model writes by now, from nothing but BOS."""
    generator = torch.Generator(device).manual_seed(seed)  # leaves the run's own random numbers alone
    start = torch.tensor([[tok.bos_id if tok.bos_id >= 0 else 0]], device=device)
    raw_model.eval()
    with autocast(device, dtype):
        stops = {tok.bos_id, tok.eos_id}
        ids = raw_model.generate(start, min(120, max_seq_len), 0.8, None, 0.9, stops, generator)
    raw_model.train()
    say("    " + tok.decode(ids[0].tolist()).replace("\n", "\n    "))


# --------------------------------------------------------------------------------------------------------
# the work

if eval_only:
    say(json.dumps({"step": step, **evaluate()}))
    sys.exit(0)
if init_from == "resume" and step >= max_iters:
    say(f"{out_dir} is finished: {step} of {max_iters} steps. A larger --max_iters goes on.")
    sys.exit(0)

log_path = os.path.join(out_dir, "log.jsonl")
if rank == 0:
    os.makedirs(out_dir, exist_ok=True)
    remove_leftovers(out_dir)
    rows = []
    if init_from == "resume" and os.path.exists(log_path):
        with open(log_path, encoding="utf-8", errors="replace") as f:
            rows = f.read().splitlines()
    with atomic_write(log_path) as f:  # what came after the state that we go on from will come again
        f.writelines(row + "\n" for row in rows if row.endswith("}") and json.loads(row)["step"] < step)
    log_file = open(log_path, "a", encoding="utf-8")
    if wandb_log:
        wandb = need("wandb", "--wandb_log")
        wandb.init(project="tiny-llm", config=config, dir=out_dir)

stopping = []  # the signals that have come


def on_signal(number, _):
    stopping.append(number)
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    if rank == 0:  # print() is not for signal handlers
        os.write(2, b"\nstopping after the step or evaluation at hand; a second signal ends it at once\n")


signal.signal(signal.SIGINT, on_signal)
signal.signal(signal.SIGTERM, on_signal)

data = batches("train", start=step * accumulation)
x, y = next(data)
stop, last_log, last_time = False, step, time.time()
skipped = bad_run = torch.zeros((), dtype=torch.long, device=device)  # all bad steps; those in a row
bar = tqdm(desc="train", unit="step", total=max_iters, initial=step, disable=rank > 0, smoothing=0.05)
while True:
    began = time.time()
    if step == max_iters or (step % eval_interval == 0 and not stop):
        result = evaluate()
        log({"step": step, **result})
        say(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in result.items()))
        if rank == 0:
            if tok and math.isfinite(result["val_loss"]):
                show_story()
            if step > 0 and (result["val_loss"] < best_val_loss or always_save_checkpoint):
                best_val_loss = min(best_val_loss, result["val_loss"])
                save("ckpt.pt")
            if importlib.util.find_spec("matplotlib"):
                draw([log_path], os.path.join(out_dir, "loss.png"))
    leaving = stop or step == max_iters
    if rank == 0 and step > 0 and (leaving or step % save_interval == 0):
        save("last.pt")
    if leaving:
        break
    last_time += time.time() - began  # tokens per second are those of training

    # a step: gradients of all micro-batches, clipped, into the optimizer
    lr, loss_sum = get_lr(step), torch.zeros((), device=device)
    for micro_step in range(accumulation):
        if dropout:  # what is dropped depends on the place in the data alone, as the data on (seed, place)
            torch.manual_seed(seed + (step * accumulation + micro_step) * world_size + rank)
        exchange = world_size == 1 or micro_step == accumulation - 1  # gradients travel once a step
        with contextlib.nullcontext() if exchange else model.no_sync():
            with autocast(device, dtype):
                loss = model(x, y)[1] / accumulation
            x, y = next(data)  # read while the device computes
            scaler.scale(loss).backward()
        loss_sum += loss.detach()
    for o in optimizers:
        scaler.unscale_(o)  # before clipping, or the threshold would be in the wrong unit
    norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
    for o in optimizers:
        for group in o.param_groups:
            group["lr"] = lr
        if len(optimizers) == 1 or norm.isfinite():  # the scaler looks at the gradients of one of them only
            scaler.step(o)  # not where a gradient is infinite or NaN
        o.zero_grad(set_to_none=True)
    scaler.update()
    bad = ~norm.isfinite()
    skipped, bad_run = skipped + bad, (bad_run + 1) * bad

    # every log_interval steps: the one place where we wait for the device
    if step % log_interval == 0:
        numbers = torch.stack((loss_sum, torch.full_like(loss_sum, len(stopping))))
        if dist.is_initialized():
            dist.all_reduce(numbers)
        loss, norm = numbers[0].item() / world_size, norm.item()
        stop = numbers[1].item() > 0  # all processes or none: the others would wait for one that left alone
        now = time.time()
        tok_per_s = (step + 1 - last_log) * tokens_per_step / (now - last_time)
        last_log, last_time = step + 1, now
        row = {"step": step, "loss": loss, "lr": lr, "grad_norm": norm}
        log(row | {"tok_per_s": round(tok_per_s), "tokens": (step + 1) * tokens_per_step})
        mfu = raw_model.estimate_mfu(tok_per_s / world_size, device_name(device), max_seq_len)
        bar.set_postfix_str(
            f"loss {loss:.3f}, lr {lr:.1e}, {tok_per_s:,.0f} tok/s" + (f", MFU {mfu:.1%}" if mfu else "")
        )
        in_a_row, allowed = bad_run.item(), 40 if dtype == "float16" and math.isfinite(loss) else 3
        if in_a_row and allowed == 3:
            say(f"step {step}: loss {loss}, gradient norm {norm}: skipped")
        if in_a_row >= allowed:
            first = step + 1 - in_a_row
            what = f"gradient's length is {norm}" if math.isfinite(loss) else f"loss is {loss}"
            kept = f"the last good state is in {last}" if os.path.exists(last) else "none was saved"
            raise ValueError(
                f"stopped at step {step}: the {what} for {in_a_row} steps in a row (from step {first} on, "
                f"with micro-batch {first * gradient_accumulation_steps} of the data order); {kept}"
            )
    stop = stop or (world_size == 1 and bool(stopping))
    step += 1
    bar.update()

bar.close()
if skipped:
    say(f"{skipped} steps whose gradients were not finite were skipped")
if stop:
    say(f"stopped after {step} steps; to go on: python train.py --init_from=resume --out_dir={out_dir}")
else:
    say(f"finished: {step} steps, best validation loss {best_val_loss:.4f}, {out_dir}/ckpt.pt")
if dist.is_initialized():
    dist.destroy_process_group()
