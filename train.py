"""
Pretraining, and fine-tuning, which is pretraining with some of the targets masked: shards of ids -> a model.

Reads  a folder of shards (tinystories.py pretokenize; prepare_data.py pretokenize, pretokenize_sft)
Writes output/ckpt.pt    the model that was best on the validation split
       output/last.pt    the newest state, every save_interval steps and at the end, from which a run resumes
       output/log.jsonl  a JSON object for each logged step and each evaluation
       output/loss.png   where matplotlib is installed

    python train.py --batch_size=8                     the tutorial's model: 8.5M parameters, 100,000 steps
    python train.py --init_from=resume                 resume the run in output/, with its options
    python train.py --init_from=output/ckpt.pt --out_dir=output_sft --vocab_source=data/belle_sft    fine-tune
    python train.py --init_from=output/ckpt.pt --eval_only              evaluate a checkpoint
    torchrun --standalone --nproc_per_node=4 train.py                   on 4 GPUs: the same global batches

gradient_accumulation_steps counts the micro-batches of all processes together, so it must be a multiple of
their number. Several machines (torchrun --nnodes=2 ...) need an out_dir and a data_dir that all of them see.

Ctrl-C (or SIGTERM) ends the run after the step at hand and saves it. A run that is killed at any moment
resumes from its last saved step, and ends with the same weights, to the bit, and the same log as an
undisturbed one: on a CPU, in float32, with one process and one number of threads; elsewhere it is the same
within rounding. A step whose gradients are not finite is skipped; a run whose last three steps were skipped
ends at the next logged step.
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

from configurator import InputError, atomic_write, options, override
from devices import (
    autocast,
    device_name,
    find_device,
    find_dtype,
    init_distributed,
    peak_flops,
    synchronize,
    try_compile,
)
from model import ModelArgs, Transformer, load_checkpoint, model_args_dict
from tinystories import PretokDataset, Task, read_meta, shard_folder
from tokenizer import Tokenizer

# what is written, and how often
out_dir = "output"  # folder for checkpoints and the log; a new run needs one without a run
eval_interval = 2000  # steps between evaluations
log_interval = 1  # steps between two rows of the log
save_interval = 500  # steps between two states of last.pt
eval_iters = 100  # batches of each split that an evaluation averages over
eval_only = False  # evaluate once and stop
story_check = False  # evaluate synthetic stories, too: see extras/story_check.py
always_save_checkpoint = False  # write ckpt.pt at every evaluation, not only at the best
init_from = "scratch"  # scratch | resume | PATH: random weights, the run in out_dir, a checkpoint's weights
# data
batch_size = 8  # sequences in a micro-batch
max_seq_len = 256  # tokens in a sequence
vocab_source = "custom"  # llama2 | custom | PATH: shards beside the stories, in data/tok4096, in a folder
vocab_size = 4096  # of the tokenizer; for a folder of shards, what its meta.json says
data_dir = "data"  # the folder of the shards' folder
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
learning_rate = 5e-4  # the highest of the schedule
max_iters = 100000  # steps
weight_decay = 1e-1  # on matrices only
beta1 = 0.9  # AdamW: decay of the mean of the gradients
beta2 = 0.95  # AdamW: decay of the mean of their squares
grad_clip = 1.0  # gradients longer than this are scaled down to it; 0 is off
# learning rate
decay_lr = True  # False: constant after the warmup
warmup_iters = 1000  # steps of linear warmup
schedule = "cosine"  # cosine | wsd | linear: to 0; wsd is constant, then linear over the last 40 %
# system
device = "auto"  # auto is cuda, mps or cpu, the first that is there; or name one: cuda:1
dtype = "bfloat16"  # float32 | bfloat16 | float16: of the matrix products, where the device is fast at it
compile = "auto"  # auto | true | false: torch.compile; auto trains without where it does not work
num_workers = 0  # processes that read ahead; reading a sequence takes 0.02 ms, so 0 is enough
seed = 1337  # of the weights, the order of the data, and dropout

# what a run that resumes cannot change: the model, and the order of the data
FIXED = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "optimizer", "batch_size", "max_seq_len",
         "gradient_accumulation_steps", "seed")  # fmt: skip

given = override(globals())
option_names = tuple(options(globals()))
for name in ("eval_interval", "log_interval", "save_interval", "eval_iters", "batch_size", "max_seq_len",
             "gradient_accumulation_steps", "max_iters"):  # fmt: skip
    if globals()[name] < 1:
        raise InputError(f"--{name}={globals()[name]}: it must be at least 1")
for name in ("dropout", "beta1", "beta2"):
    if not 0 <= globals()[name] < 1:
        raise InputError(f"--{name}={globals()[name]}: it must be at least 0 and below 1")


def print0(text):
    """Print a line from the first process only, above the progress bar."""
    if rank == 0:
        tqdm.write(text)


# --------------------------------------------------------------------------------------------------------
# the run: a new one, or one that resumes

rank, world_size, device = init_distributed(find_device(device))
paths = {name: os.path.join(out_dir, name) for name in ("last.pt", "ckpt.pt", "log.jsonl", "loss.png")}
present = [paths[name] for name in ("last.pt", "ckpt.pt") if os.path.exists(paths[name])]
checkpoint = None
if init_from == "resume":
    if not present:
        raise InputError(f"nothing to resume in {out_dir}: there is no last.pt and no ckpt.pt")
    checkpoint = load_checkpoint(present[0])
    if "optimizer" not in checkpoint:
        raise InputError(f"{present[0]} holds no run: give --init_from={present[0]} and another --out_dir")
    for name, value in checkpoint["config"].items():
        if name in FIXED and given.get(name, value) != value:
            raise InputError(f"the run in {out_dir} has --{name}={value}: another value needs a new run")
        if name in option_names and name not in (*given, "init_from", "out_dir", "device", "eval_only"):
            globals()[name] = value
elif present and not eval_only:
    raise InputError(f"{out_dir} holds a run: resume it with --init_from=resume, or give another --out_dir")
elif init_from != "scratch":
    checkpoint = load_checkpoint(init_from)

if gradient_accumulation_steps % world_size:
    raise InputError(
        f"{world_size} processes need gradient_accumulation_steps to be a multiple of {world_size}, "
        f"not {gradient_accumulation_steps}"
    )
grad_accum_steps = gradient_accumulation_steps // world_size  # of this process
requested_dtype = dtype
dtype = find_dtype(dtype, device)
if dtype != requested_dtype:
    print0(f"{requested_dtype} is slow on this {device}: taking {dtype}")

# --------------------------------------------------------------------------------------------------------
# data

folder = shard_folder(vocab_size, vocab_source, data_dir)
meta = read_meta(folder, vocab_size if vocab_source == "custom" or "vocab_size" in given else None)
vocab_size = meta.get("vocab_size", vocab_size)
if init_from != "resume" and "max_seq_len" not in given:
    model_context = checkpoint["model_args"].get("max_seq_len") if checkpoint else None
    max_seq_len = meta.get("row_len") or model_context or max_seq_len
if checkpoint and checkpoint["model_args"]["vocab_size"] != vocab_size:
    model_vocab = checkpoint["model_args"]["vocab_size"]
    raise InputError(f"the model has a vocabulary of {model_vocab}, but {folder} one of {vocab_size}")

tok = None
if checkpoint and checkpoint.get("tokenizer"):
    tok = Tokenizer(checkpoint["tokenizer"])
elif "tokenizer" in meta:
    tok = Tokenizer(os.path.join(folder, meta["tokenizer"]))
if tok and tok.fingerprint() != meta.get("tokenizer_fingerprint", tok.fingerprint()):
    raise InputError(f"the shards in {folder} were made by another tokenizer than {tok.name}")


shards = {"vocab_size": vocab_size, "vocab_source": vocab_source, "data_dir": data_dir}
shards["max_seq_len"] = max_seq_len
num_chunks = {split: len(PretokDataset(split, **shards)) for split in ("train", "val")}


def iter_batches(split, start=0, seed=seed):
    """Endless batches: inputs, targets and, in fine-tuning, documents; see Task.iter_batches."""
    return Task.iter_batches(batch_size, device, num_workers, start, split=split, seed=seed, **shards)


# --------------------------------------------------------------------------------------------------------
# model and optimizer

torch.manual_seed(seed)
torch.set_float32_matmul_precision("high")  # TF32 on CUDA
if checkpoint:
    raw_model = Transformer.from_checkpoint(checkpoint, max_seq_len=max_seq_len, dropout=dropout)
else:
    try:
        args = ModelArgs(
            dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, vocab_size=vocab_size,
            multiple_of=multiple_of, max_seq_len=max_seq_len, dropout=dropout,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    raw_model = Transformer(args)
raw_model.to(device)
betas = (beta1, beta2)
if optimizer == "muon":
    from extras.muon import configure_muon

    optimizers = configure_muon(raw_model, weight_decay, learning_rate, betas, compile)
else:
    optimizers = [raw_model.configure_optimizers(weight_decay, learning_rate, betas)]
# float16 has no small numbers: the loss is scaled up, so that gradients do not become 0.
scaler = torch.amp.GradScaler(device.split(":")[0], enabled=dtype == "float16")
step = 0  # steps that are done; called iter_num in checkpoints, as in nanoGPT's and llama2.c's
best_val_loss = math.inf
if init_from == "resume":
    step = checkpoint["iter_num"]
    best_val_loss = checkpoint["best_val_loss"]
    for o, state in zip(optimizers, [checkpoint["optimizer"], checkpoint.get("muon")]):
        new_options = [{k: v for k, v in group.items() if k != "params"} for group in o.param_groups]
        o.load_state_dict(state)
        for group, new in zip(o.param_groups, new_options):
            group.update(new)  # another --weight_decay takes effect
    if checkpoint["scaler"]:  # empty, if the run was in another dtype
        scaler.load_state_dict(checkpoint["scaler"])
    torch.set_rng_state(checkpoint["rng"]["torch"])
checkpoint = None  # frees its memory

# The compiled model shares its weights with raw_model, which samples and is saved: so no checkpoint has
# torch.compile's prefix `_orig_mod.` in its names.
if device.startswith("cpu") and dtype == "bfloat16":
    from extras.causal_blocks import use_causal_blocks

    use_causal_blocks(raw_model)  # faster where the model is compiled, and elsewhere the same as without
model = try_compile(raw_model, compile, device, print0)
# On a CPU an evaluation takes less time than compiling the model once more, without gradients.
eval_model = model if device.startswith("cuda") else raw_model
if world_size > 1:
    gpu = [device] if device.startswith("cuda") else None
    model = DistributedDataParallel(model, device_ids=gpu)

tokens_per_step = gradient_accumulation_steps * batch_size * max_seq_len
epochs = max_iters * tokens_per_step / (num_chunks["train"] * max_seq_len)
config = {name: globals()[name] for name in option_names}
config |= {name: x for name, x in model_args_dict(raw_model.args).items() if name in config}
print0(
    f"{raw_model.num_params():,} parameters; {gradient_accumulation_steps} micro-batches x {batch_size} "
    f"sequences x {max_seq_len} tokens = {tokens_per_step:,} tokens per step; {max_iters:,} steps are "
    f"{epochs:.1f} epochs; {device_name(device)}, {dtype}"
)
if init_from == "resume":
    print0(f"resuming {out_dir} at step {step}")

# --------------------------------------------------------------------------------------------------------
# the small functions


def get_lr(it):
    """The learning rate of step `it`: a linear warmup that does not begin at 0, then the schedule."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    progress = (it - warmup_iters) / max(1, max_iters - warmup_iters)  # 0 .. 1
    if schedule == "cosine":
        return learning_rate * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "wsd":  # warmup, stable, decay: MiniCPM, arXiv:2404.06395
        return learning_rate * min(1, (1 - progress) / 0.4)
    return learning_rate * (1 - progress)


@torch.no_grad()
def estimate_loss():
    """{"train_loss", "val_loss", "val_bpb"}: means over eval_iters batches, or all that the split has."""
    raw_model.eval()
    result = {}
    # New batches of the training data at every evaluation, the same ones of the validation data.
    for split, order_seed in (("train", seed + 1 + step), ("val", seed)):
        total = torch.zeros(2, dtype=torch.float64)  # loss summed over the targets, number of targets
        num_batches = min(eval_iters, max(1, num_chunks[split] // batch_size))
        for _, batch in zip(range(rank, num_batches, world_size), iter_batches(split, seed=order_seed)):
            with autocast(device, dtype):
                loss = eval_model(*batch)
            count = (batch[1] >= 0).sum().item()
            total += torch.tensor([loss.item() * count, count], dtype=torch.float64)
        if world_size > 1:
            total = total.to(torch.float32).to(device)
            dist.all_reduce(total)
        result[f"{split}_loss"] = (total[0] / total[1]).item()
    raw_model.train()
    if "splits" in meta:  # nats per token -> bits per byte, which do not depend on the tokenizer
        val = meta["splits"]["val"]
        result["val_bpb"] = result["val_loss"] / math.log(2) * val["tokens"] / val["bytes"]
    if "limit_bpb" in meta:  # of synthetic stories: what a perfect model would have, at most
        result["limit_bpb"] = meta["limit_bpb"]
    return result


def evaluate():
    """Estimate the losses, log them, write a story, and keep the model if it is the best so far."""
    global best_val_loss
    losses = estimate_loss()
    if story_check and tok:
        from extras.story_check import check_model

        losses |= check_model(raw_model, tok)
    log({"step": step, **losses})
    print0(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
    if rank == 0 and tok:
        print_story()
    if step > 0 and (losses["val_loss"] < best_val_loss or always_save_checkpoint):
        best_val_loss = min(best_val_loss, losses["val_loss"])
        save_checkpoint("ckpt.pt")
    if rank == 0 and importlib.util.find_spec("matplotlib"):
        from extras.plot import draw

        draw([paths["log.jsonl"]], paths["loss.png"])


def print_story():
    """What the model writes by now, from nothing but BOS."""
    generator = torch.Generator(device).manual_seed(seed)  # the run's own random numbers stay as they are
    start = torch.tensor([[max(tok.bos_id, 0)]], device=device)
    raw_model.eval()
    with autocast(device, dtype):
        length = min(120, max_seq_len)
        ids = raw_model.generate(start, length, 0.8, None, 0.9, {tok.bos_id, tok.eos_id}, generator)
    raw_model.train()
    print0("    " + tok.decode(ids[0].tolist()).replace("\n", "\n    "))


def save_checkpoint(name):
    """Write all that a resumed run needs, as plain types and tensors (torch.load's weights_only)."""
    if rank > 0:
        return
    os.fsync(log_file.fileno())  # the log of the steps that are saved must survive a power cut, too
    state = {
        "model": raw_model.state_dict(),
        "model_args": model_args_dict(raw_model.args),
        "config": config,
        "iter_num": step,
        "best_val_loss": best_val_loss,
        "optimizer": optimizers[0].state_dict(),
        "muon": optimizers[1].state_dict() if optimizer == "muon" else None,
        "scaler": scaler.state_dict(),
        "rng": {"torch": torch.get_rng_state()},
        "tokenizer": tok.state() if tok else None,
    }
    with atomic_write(paths[name], "wb") as f:
        torch.save(state, f)


def open_log():
    """The log to append to. Of a run that resumes, rows of steps that will be done again are dropped."""
    rows = []
    if init_from == "resume" and os.path.exists(paths["log.jsonl"]):
        with open(paths["log.jsonl"], encoding="utf-8") as f:
            rows = [line for line in f if line.endswith("}\n") and json.loads(line)["step"] < step]
    with atomic_write(paths["log.jsonl"]) as f:
        f.writelines(rows)
    return open(paths["log.jsonl"], "a", encoding="utf-8")


def log(row):
    if rank == 0:
        row = {key: x if math.isfinite(x) else None for key, x in row.items()}  # JSON has no NaN
        log_file.write(json.dumps(row) + "\n")
        log_file.flush()


def on_signal(number, _):
    signals.append(number)
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    if rank == 0:
        os.write(2, b"\nstopping after this step or evaluation; a second signal stops at once\n")


# --------------------------------------------------------------------------------------------------------
# the loop

if eval_only or step >= max_iters:
    if eval_only:
        print0(json.dumps({"step": step, **estimate_loss()}))
    else:
        print0(f"{out_dir} is finished: {step} of {max_iters} steps; a larger --max_iters continues it")
    if world_size > 1:
        dist.destroy_process_group()
    sys.exit(0)
if rank == 0:
    log_file = open_log()
signals = []
signal.signal(signal.SIGINT, on_signal)
signal.signal(signal.SIGTERM, on_signal)

batches = iter_batches("train", start=step * grad_accum_steps)
stop = False
skipped = torch.zeros((), device=device)  # steps that were skipped
skipped_in_a_row = torch.zeros((), device=device)
first_step = step
last_logged = step
seconds = 0.0  # of training since the last logged step
progress = tqdm(desc="train", unit="step", total=max_iters, initial=step, disable=rank > 0, smoothing=0.05)
began = time.time()
while True:
    must_evaluate = step == max_iters or (step % eval_interval == 0 and not stop)
    must_save = step > 0 and (step == max_iters or stop or step % save_interval == 0)
    if must_evaluate or must_save:
        synchronize(device)
        seconds += time.time() - began
        if must_evaluate:
            evaluate()
        if must_save:
            save_checkpoint("last.pt")
        began = time.time()
    if step == max_iters or stop:
        break

    # A step: forward and backward for each micro-batch, clip the gradients, update the weights. The loss is
    # the mean over the targets of all micro-batches of all processes. Nothing here reads a number from the
    # device: it computes while Python prepares the next step, and only a logged step waits for it.
    micro_batches = [next(batches) for _ in range(grad_accum_steps)]
    num_targets = sum((y >= 0).sum() for _, y, *_ in micro_batches)
    if world_size > 1:
        dist.all_reduce(num_targets)
    step_loss = torch.zeros((), device=device)
    for i, (x, y, *documents) in enumerate(micro_batches):
        if dropout:  # depends on the place in the data alone, as the data depend on (seed, place)
            torch.manual_seed(seed + (step * grad_accum_steps + i) * world_size + rank)
        sync_gradients = world_size == 1 or i == grad_accum_steps - 1  # once a step
        with contextlib.nullcontext() if sync_gradients else model.no_sync():
            with autocast(device, dtype):
                loss = model(x, y, *documents) * ((y >= 0).sum() / num_targets)
            scaler.scale(loss * world_size).backward()  # DDP takes the mean over the processes
        step_loss += loss.detach()
    lr = get_lr(step)
    for o in optimizers:
        scaler.unscale_(o)
    grad_norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
    found_inf = (~grad_norm.isfinite()).float()  # 1: the optimizers change nothing
    for o in optimizers:
        o.found_inf = found_inf
        for group in o.param_groups:
            group["lr"] = lr
        o.step()
    scaler.update()
    raw_model.zero_grad(set_to_none=True)
    skipped += found_inf
    skipped_in_a_row = (skipped_in_a_row + 1) * found_inf

    if step % log_interval == 0:
        numbers = torch.stack((step_loss, torch.full_like(step_loss, len(signals))))
        if world_size > 1:
            dist.all_reduce(numbers)
        loss, num_signals = numbers.tolist()  # waits for the device
        stop = num_signals > 0  # all processes stop, or none
        seconds += time.time() - began
        began = time.time()
        tok_per_s = (step + 1 - last_logged) * tokens_per_step / seconds
        last_logged = step + 1
        seconds = 0.0
        row = {"step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm.item()}
        log({**row, "tok_per_s": round(tok_per_s), "tokens": (step + 1) * tokens_per_step})
        mfu = raw_model.estimate_mfu(tok_per_s / world_size, peak_flops(device_name(device)), max_seq_len)
        mfu_text = f", MFU {mfu:.1%}" if mfu else ""
        progress.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {tok_per_s:,.0f} tok/s{mfu_text}")
        if skipped_in_a_row:
            print0(f"step {step}: loss {loss}, gradient norm {grad_norm.item()}: skipped")
        if skipped_in_a_row >= (40 if dtype == "float16" else 3):  # float16's scaler searches for its scale
            progress.close()
            raise InputError(
                f"stopped: {skipped_in_a_row:.0f} steps in a row had gradients that are not finite"
            )
        if 3 <= step - first_step < 3 + log_interval:  # once, when the speed is known
            hours = (max_iters - step) * tokens_per_step / tok_per_s / 3600
            hint = "; on a CPU, bash quickstart.sh trains a smaller model in minutes" if hours > 24 else ""
            print0(f"about {hours:.1f} hours to go{hint}")
    stop = stop or (world_size == 1 and bool(signals))
    step += 1
    progress.update()

progress.close()
if skipped:
    print0(f"{skipped:.0f} steps whose gradients were not finite were skipped")
if stop:
    print0(f"stopped after {step} steps; to resume: python train.py --init_from=resume --out_dir={out_dir}")
else:
    print0(f"finished: {step} steps, best validation loss {best_val_loss:.4f}, {paths['ckpt.pt']}")
if world_size > 1:
    dist.barrier()  # a process that leaves while another still works may end with an abort
    dist.destroy_process_group()
