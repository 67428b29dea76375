"""
Pretraining, and fine-tuning, which is pretraining with some of the targets masked: shards of ids -> a model.

Reads  a folder of shards (tinystories.py pretokenize; prepare_data.py pretokenize, pretokenize_sft)
Writes output/ckpt.pt    the model with the lowest validation loss so far
       output/last.pt    the newest state, every save_interval steps and at the end, from which a run resumes
       output/log.jsonl  a JSON object for each logged step and each evaluation; loss.png (with matplotlib)

    python train.py --batch_size=8                     the tutorial's model: 8.5M parameters, 100,000 steps
    python train.py --init_from=resume                 resume the run in output/, with its options
    python train.py --init_from=output/ckpt.pt --out_dir=output_sft --vocab_source=data/belle_sft    fine-tune
    python train.py --init_from=output/ckpt.pt --eval_only              evaluate a checkpoint
    torchrun --standalone --nproc_per_node=4 train.py                   on 4 GPUs: the same global batches

Ctrl-C, SIGTERM or a closed terminal ends the run after the current step, and saves it (torchrun waits 30 s).
A killed run resumes at its last save and ends as if undisturbed: on a CPU, in eager float32, in one process
with as many threads, to the bit. Steps without finite gradients are skipped; 3 in a row (float16: 40) end it.
"""

import contextlib
import functools
import json
import math
import os
import re
import signal
import sys
import time

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch: see docs/experiments.md, "threads that wait"

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import devices
from configurator import InputError, as_input_error, atomic_write, options, override
from devices import autocast, device_name, find_dtype, init_distributed, peak_flops, print0, try_compile
from model import ModelArgs, Transformer, model_args_dict
from reader import read_checkpoint
from tinystories import PretokDataset, Task, read_meta, shard_folder
from tokenizer import Tokenizer

# output
out_dir = "output"  # folder for checkpoints and the log; it must not hold another run
eval_interval = 2000  # at least 1: steps between evaluations
log_interval = 1  # at least 1: steps between two rows of the log
save_interval = 500  # at least 1: steps between writes of last.pt
eval_iters = 100  # at least 1: batches of each split that an evaluation averages over
eval_only = False  # evaluate once and stop
always_save_checkpoint = False  # write ckpt.pt at every evaluation, not only at the best
init_from = "scratch"  # scratch | resume | PATH: random weights, the run in out_dir, a checkpoint's weights
# data
batch_size = 8  # at least 1, at most 65536: sequences in a micro-batch
max_seq_len = 256  # at least 1: tokens in a sequence
whole_stories = False  # True: each sequence begins with a story, if one begins in it
vocab_source = "custom"  # llama2 | custom | PATH: shards beside the stories; in data/tok<vocab_size>; in PATH
vocab_size = 4096  # at least 1: of the tokenizer; for a folder of shards, what its meta.json says
data_dir = "data"  # the parent folder of tok4096/
# model
dim = 288  # at least 1: width
n_layers = 8  # at least 1: blocks
n_heads = 8  # at least 1: query heads
n_kv_heads = 4  # at least 1: key/value heads
multiple_of = 32  # at least 1: the feed-forward layer's width is rounded up to a multiple of this
dropout = 0.0  # at least 0, below 1: probability; for pretraining on much text 0 is good
# optimizer
optimizer = "adamw"  # adamw | muon: Muon for the matrices of the blocks, AdamW for the rest
gradient_accumulation_steps = 4  # at least 1: micro-batches in a step, of all processes together
learning_rate = 5e-4  # at least 0, below 1e9: the highest of the schedule
max_iters = 100000  # at least 1: steps
weight_decay = 1e-1  # at least 0, below 1e9: on matrices only
beta1 = 0.9  # at least 0, below 1: AdamW's decay of the mean of the gradients
beta2 = 0.95  # at least 0, below 1: AdamW's decay of the mean of their squares
grad_clip = 1.0  # at least 0: maximum gradient norm; 0 is off
# learning rate
decay_lr = True  # False: constant after the warmup
warmup_iters = 1000  # at least 0: steps of linear warmup
schedule = "cosine"  # cosine | wsd: down to 0 all the time, or constant and then linear over the last 40 %
# system
device = "auto"  # auto is cuda, mps or cpu, the first that is there; or name one: cuda:1
dtype = "bfloat16"  # float32 | bfloat16 | float16: of the matrix products, where the device is fast at it
compile = "auto"  # auto | true | false: torch.compile; auto trains without where it does not work
seed = 1337  # at least 0, below 4e9: of weights, dropout, the order of the data, validation's too

given = override(globals())
config = options(globals())  # goes into the checkpoints
# A run that resumes has the options of its checkpoint, except for those given; they cannot be FIXED ones.
SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "vocab_size")
FIXED = (*SHAPE[:-1], "batch_size", "max_seq_len", "gradient_accumulation_steps", "seed", "optimizer",
         "whole_stories", "weight_decay", "beta1", "beta2")  # fmt: skip
NOT_KEPT = ("init_from", "out_dir", "device", "eval_only")  # those of a single start

# ------------ the run: a new one, or one that resumes -----------------------------------------------------
rank, world_size, device = init_distributed(device)
all_reduce = dist.all_reduce if world_size > 1 else lambda tensor: None  # the sum over all processes
last_path, best_path, log_path = (f"{out_dir}/{name}" for name in ("last.pt", "ckpt.pt", "log.jsonl"))
resume = init_from == "resume"
checkpoint = {}  # empty for random weights
newest = last_path if os.path.exists(last_path) else best_path
if resume:
    if not os.path.exists(newest):
        raise InputError(f"nothing to resume in {out_dir}: there is no last.pt and no ckpt.pt")
    if rank == 0 and not eval_only:
        devices.hold_folder(out_dir)
    checkpoint = read_checkpoint(newest)
    saved = checkpoint.get("config")
    if not {"optimizer", "scaler"} <= checkpoint.keys() or not isinstance(saved, dict):
        raise InputError(f"{newest} holds no run: --init_from={newest} starts from its weights")
    kept = [k for k in config if k in saved and k not in NOT_KEPT and (k in FIXED or k not in given)]
    config |= override(globals(), words=[f"--{name}={saved[name]}" for name in kept], source=newest)
    for name in FIXED:
        value = config[name]
        if given.get(name, value) != value:
            raise InputError(f"the run in {out_dir} has --{name}={value}: another value needs a new run")
elif not eval_only and any(map(os.path.exists, (newest, log_path))):
    how = "resume it with --init_from=resume, or " if os.path.exists(newest) else ""  # a log alone is no help
    raise InputError(f"{out_dir} holds a run: {how}give another --out_dir")
elif init_from != "scratch":
    checkpoint = read_checkpoint(init_from)
if gradient_accumulation_steps % world_size:
    needs = f"{world_size} processes need gradient_accumulation_steps to be a multiple of {world_size}"
    raise InputError(f"{needs}, not {gradient_accumulation_steps}")
grad_accum_steps = gradient_accumulation_steps // world_size  # of this process
dtype = find_dtype(dtype, device)
if dtype != config["dtype"]:
    print0(f"{config['dtype']} is slow on this {device}: taking {dtype}")

# ------------ data ----------------------------------------------------------------------------------------
folder = shard_folder(vocab_size, vocab_source, data_dir)
meta = read_meta(folder, vocab_size if vocab_source == "custom" or "vocab_size" in given else None)
vocab_size = meta.get("vocab_size", vocab_size)
if not resume and "max_seq_len" not in given:
    max_seq_len = meta.get("row_len") or checkpoint.get("model_args", {}).get("max_seq_len") or max_seq_len
source = checkpoint.get("tokenizer") or ("tokenizer" in meta and os.path.join(folder, meta["tokenizer"]))
tok = Tokenizer(source) if source else None
if tok and tok.fingerprint() != meta.get("tokenizer_fingerprint", tok.fingerprint()):
    raise InputError(f"the shards in {folder} were made by another tokenizer than {tok.name}")
dataset_args = {"max_seq_len": max_seq_len, "vocab_size": vocab_size, "vocab_source": folder}
if whole_stories and tok and tok.bos_id >= 0:
    dataset_args["start_id"] = tok.bos_id
num_chunks = {split: len(PretokDataset(split, **dataset_args)) for split in ("train", "val")}
iter_batches = functools.partial(Task.iter_batches, batch_size, device, **dataset_args)

# ------------ model and optimizer -------------------------------------------------------------------------
torch.manual_seed(seed)
torch.set_float32_matmul_precision("high")  # TF32 on CUDA
if checkpoint:
    raw_model = Transformer.from_checkpoint(checkpoint, max_seq_len=max_seq_len, dropout=dropout)
    model_vocab = raw_model.args.vocab_size
    if model_vocab < vocab_size:  # more is a padded vocabulary
        raise InputError(f"the model has a vocabulary of {model_vocab}, but {folder} one of {vocab_size}")
else:
    with as_input_error("no such model"):
        raw_model = Transformer(ModelArgs(**{k: globals()[k] for k in (*SHAPE, "max_seq_len", "dropout")}))
if tok:
    raw_model.num_pieces = tok.n_words  # what evaluate() prints has no id of the padding
raw_model.to(device)
if optimizer == "muon":
    from extras.muon import configure_muon

    opt = configure_muon(raw_model, weight_decay, learning_rate, (beta1, beta2), compile)
else:
    opt = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2))
# float16 has no small numbers: the loss is scaled up, so that gradients do not become 0.
scaler = torch.amp.GradScaler(device.split(":")[0], enabled=dtype == "float16")
step = 0  # steps that are done; called iter_num in checkpoints, as in nanoGPT's and llama2.c's
best_val_loss = math.inf
data_counts = {"splits": meta.get("splits"), "chunks": num_chunks}
if resume:
    with as_input_error(f"{newest} is damaged, or older than this train.py"):
        step = int(checkpoint["iter_num"])
        best_val_loss = float(checkpoint["best_val_loss"])
        own_groups = opt.state_dict()["param_groups"]  # their settings are those of the options
        opt.load_state_dict({"state": checkpoint["optimizer"]["state"], "param_groups": own_groups})
        for p in raw_model.parameters() if step else ():
            if step < 0 or {t.shape for t in opt.state[p].values()} | {()} != {p.shape, ()}:
                raise ValueError("its step or optimizer is that of another model, or not complete")
        if checkpoint["scaler"]:  # empty, if the run was in another dtype
            scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["rng"]["torch"])
    print0(f"resuming {out_dir} at step {step}")
    if checkpoint.get("data_counts", data_counts) != data_counts:
        print0(f"{folder} holds other data than at the last save: the best validation loss begins again")
        best_val_loss = math.inf
del checkpoint  # frees its memory

if device.startswith("cpu") and dtype == "bfloat16":
    from extras.causal_blocks import use_causal_blocks

    use_causal_blocks(raw_model)  # faster where the model is compiled, and elsewhere the same as without
# It shares the weights of raw_model, which samples and is saved: no name there has the prefix `_orig_mod.`.
model = try_compile(raw_model, compile, device)
eval_model = model if device.startswith("cuda") else raw_model  # a CPU evaluates sooner than it compiles
if world_size > 1:
    model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
config |= {name: value for name, value in model_args_dict(raw_model.args).items() if name in config}
peak = peak_flops(device_name(device), dtype)
tokens_per_step = gradient_accumulation_steps * batch_size * max_seq_len
epochs = max_iters * gradient_accumulation_steps * batch_size / num_chunks["train"]
print0(f"{raw_model.num_params():,} parameters; {gradient_accumulation_steps} micro-batches x {batch_size} "
       f"sequences x {max_seq_len} tokens = {tokens_per_step:,} tokens per step; {max_iters:,} steps are "
       f"{epochs:.1f} epochs; {device_name(device)}, {dtype}")  # fmt: skip


def get_lr(it):
    """The learning rate of step `it`: a linear warmup that does not begin at 0, then the schedule."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    progress = (it - warmup_iters) / max(1, max_iters - warmup_iters)  # 0 .. 1
    if schedule == "cosine":
        return learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return learning_rate * min(1, (1 - progress) / 0.4)  # warmup, stable, decay: MiniCPM, arXiv:2404.06395


@torch.no_grad()
def estimate_loss():
    """{"train_loss", "val_loss", "val_bpb"}: means over eval_iters batches, or all that the split has."""
    raw_model.eval()
    losses = {}
    # New batches of the training data at every evaluation, the same ones of the validation data.
    for split, order_seed in (("train", seed + 1 + step), ("val", seed)):
        precise = torch.float32 if device.startswith("mps") else torch.float64  # MPS has none
        total = torch.zeros(2, device=device, dtype=precise)  # the loss summed over the targets; their number
        num_batches = min(eval_iters, max(1, num_chunks[split] // batch_size))
        for _, batch in zip(range(rank, num_batches, world_size), iter_batches(split=split, seed=order_seed)):
            with autocast(device, dtype):
                loss = eval_model(*batch)
            count = (batch[1] >= 0).sum()
            total += torch.stack((loss * count, count))
        all_reduce(total)
        losses[f"{split}_loss"] = (total[0] / total[1]).item()
    val = meta.get("splits", {}).get("val", {})
    if val.get("bytes"):  # nats per token -> bits per byte, which do not depend on the tokenizer
        losses["val_bpb"] = losses["val_loss"] / math.log(2) * val["tokens"] / val["bytes"]
    if "limit_bpb" in meta:  # of synthetic stories: what a perfect model would have, at most
        losses["limit_bpb"] = meta["limit_bpb"]
    return losses


def evaluate():
    """Estimate the losses, log them, print a story, and save the model if it is the best so far."""
    global best_val_loss
    losses = estimate_loss()
    log({"step": step, **losses})
    print0(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
    if rank == 0 and tok:  # a story from nothing but BOS; the run's own random numbers stay as they are
        generator = torch.Generator(device).manual_seed(seed)
        start = torch.tensor([[tok.bos_id if tok.bos_id >= 0 else tok.eos_id]], device=device)
        settings = (min(120, max_seq_len), 0.8, None, 0.9, {tok.bos_id, tok.eos_id}, generator)
        with autocast(device, dtype):
            ids = raw_model.generate(start, *settings)
        print0("    " + tok.decode(ids[0].tolist()).replace("\n", "\n    "))
    if step > 0 and (losses["val_loss"] < best_val_loss or always_save_checkpoint):
        best_val_loss = min(best_val_loss, losses["val_loss"])
        save_checkpoint(best_path)
    if rank == 0:
        from extras.plot import try_draw

        try_draw(log_path, f"{out_dir}/loss.png")
    raw_model.train()


def save_checkpoint(path):
    """Write all that a resumed run needs, as plain types and tensors (torch.load's weights_only)."""
    if rank > 0:
        return
    if step > 0:
        os.fsync(log_file.fileno())  # the log of the steps that are saved must survive a power cut, too
    with atomic_write(path, "wb") as f:
        torch.save({
            "model": raw_model.state_dict(), "model_args": model_args_dict(raw_model.args), "config": config,
            "tokenizer": tok.state() if tok else None, "data_counts": data_counts,
            "iter_num": step, "best_val_loss": best_val_loss, "rng": {"torch": torch.get_rng_state()},
            "optimizer": opt.state_dict(), "scaler": scaler.state_dict(),
        }, f)  # fmt: skip


def log(row):
    if rank == 0:
        row = {key: x if math.isfinite(x) else None for key, x in row.items()}  # JSON has no NaN
        print(json.dumps(row), file=log_file)


def on_signal(number, _):
    signals.append(number)
    # A second one ends the process at once; but a closed terminal sends two, by the shell and by the system.
    signal.signal(number, signal.SIG_IGN if number == getattr(signal, "SIGHUP", None) else signal.SIG_DFL)
    progress.disable = True  # a closed terminal, or a pipe whose reader is gone, would end the run here
    with contextlib.suppress(OSError):
        os.write(2, b"\nstopping after this step; a second signal stops at once\n" * (rank == 0))


# ------------ the loop ------------------------------------------------------------------------------------
if eval_only or step >= max_iters:
    ended = f"{out_dir} is finished: {step} of {max_iters} steps; a larger --max_iters continues it"
    print0(json.dumps({"step": step, **estimate_loss()}) if eval_only else ended)
    if world_size > 1:
        dist.destroy_process_group()
    sys.exit(0)
progress = tqdm(desc="train", unit="step", total=max_iters, initial=step, disable=rank > 0, smoothing=0.05)
signals = []
for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(number) != signal.SIG_IGN:  # nohup lets SIGHUP be ignored
        signal.signal(number, on_signal)
if rank == 0:
    if not resume:
        devices.hold_folder(out_dir)  # only now: a start that is refused leaves no folder
        if os.path.exists(last_path):  # of a run that has ended since this one looked
            raise InputError(f"{out_dir} holds another run: give another --out_dir")
        save_checkpoint(last_path)  # from here on, there is something to resume
    with open(log_path, "a+", encoding="utf-8", errors="replace") as f:
        f.seek(0)
        rows = re.finditer(r'^{"step": (\d+), .*}\n', f.read(), re.MULTILINE)
    with atomic_write(log_path) as f:
        f.writelines(row[0] for row in rows if int(row[1]) < step)  # the others will be done again
    log_file = open(log_path, "a", buffering=1, encoding="utf-8")  # a killed run's log ends with a whole line

batches = iter_batches(split="train", seed=seed, start=step * grad_accum_steps)
stop = False
skipped_in_a_row = torch.zeros((), device=device)  # steps whose gradients were not finite
began = t0 = time.perf_counter()
first_step = timed_from = next_check = step
while True:
    finished = step >= max_iters
    must_evaluate = finished or (step % eval_interval == 0 and not stop)
    must_save = step > 0 and (finished or stop or step % save_interval == 0)
    if must_evaluate:
        evaluate()
    if must_save:
        save_checkpoint(last_path)
    if finished or stop:
        break
    if must_evaluate or must_save:  # their time does not count
        t0 = time.perf_counter()
        timed_from = step

    # A step. The loss is the mean over the targets of all micro-batches of all processes. Nothing here reads
    # a number from the device: it computes while Python prepares the next step; only a logged step waits.
    micro_batches = [next(batches) for _ in range(grad_accum_steps)]
    num_targets = sum((y >= 0).sum() for _, y, *_ in micro_batches)
    all_reduce(num_targets)
    step_loss = torch.zeros((), device=device)
    for i, (x, y, *documents) in enumerate(micro_batches):
        if dropout:  # seeded by the position in the data, so that a resumed run drops the same units
            torch.manual_seed(seed + (step * grad_accum_steps + i) * world_size + rank)
        sync_gradients = world_size == 1 or i == grad_accum_steps - 1  # once a step
        with contextlib.nullcontext() if sync_gradients else model.no_sync():
            with autocast(device, dtype):
                loss = model(x, y, *documents) * ((y >= 0).sum() / num_targets)
            scaler.scale(loss * world_size).backward()  # DDP takes the mean over the processes
        step_loss += loss.detach()
    scaler.unscale_(opt)
    grad_norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
    opt.found_inf = (~grad_norm.isfinite()).float()  # 1: opt.step() changes nothing
    skipped_in_a_row = (skipped_in_a_row + 1) * opt.found_inf
    lr = get_lr(step)
    for group in opt.param_groups:
        group["lr"] = lr
    if not (device.startswith("mps") and opt.found_inf):  # the optimizers of MPS do not know found_inf
        opt.step()
    scaler.update()
    raw_model.zero_grad(set_to_none=True)

    if step % log_interval == 0:  # reading the numbers waits for the device
        all_reduce(step_loss)
        loss, grad_norm, num_skipped = torch.stack((step_loss, grad_norm, skipped_in_a_row)).tolist()
        tok_per_s = (step + 1 - timed_from) * tokens_per_step / (time.perf_counter() - t0)
        t0 = time.perf_counter()
        timed_from = step + 1
        row = {"step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm}
        log({**row, "tok_per_s": round(tok_per_s), "tokens": (step + 1) * tokens_per_step})
        mfu = raw_model.estimate_mfu(tok_per_s / world_size, peak, max_seq_len)
        speed = f"{tok_per_s:,.0f} tok/s" + (f", MFU {mfu:.1%}" if mfu else "")
        progress.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {speed}")
        if num_skipped:
            print0(f"step {step}: loss {loss}, gradient norm {grad_norm}: skipped")
        if num_skipped >= (40 if dtype == "float16" else 3):  # float16's scaler searches for its scale
            progress.close()
            raise InputError(f"stopped: {num_skipped:.0f} steps in a row had gradients that are not finite")

    # The end, after a signal. Several processes ask each other every two seconds: all stop, or none.
    if world_size == 1:
        stop = bool(signals)
    elif step >= next_check:
        answers = torch.tensor([len(signals), time.perf_counter() - began], device=device)
        dist.all_reduce(answers, dist.ReduceOp.MAX)
        num_signals, seconds = answers.tolist()
        stop = num_signals > 0
        next_check = step + 1 + int(2 * (step + 1 - first_step) / seconds)
    step += 1
    progress.update()

progress.close()
if finished:
    print0(f"finished: {step} steps, best validation loss {best_val_loss:.4f}, {best_path}")
else:
    print0(f"stopped after {step} steps; to resume: python train.py --init_from=resume --out_dir={out_dir}")
if world_size > 1:
    dist.barrier()  # a process that leaves while another still works may end with an abort
    dist.destroy_process_group()
