"""
Kill a small run again and again at random moments, mostly by SIGKILL, and resume it each time.

    python -m tests.torture 50
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import torch

from tests.fixtures import ALONE, HERE, SMALL, assert_same_run, run

MOMENTS = ("step", "step", "step", "evaluation", "evaluation", "save", "save", "save", "start")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def tortured(kills, folder, data, max_iters=120, moments=MOMENTS, seed=0):
    """
    Kill a small run `kills` times, at moments drawn from `moments`, and resume it; where it ends before
    that, begin another. AssertionError where one ends with other weights, optimizer state or log than an
    undisturbed run. Returns what was hit: {(moment, signal): count}.
    """
    knobs = [
        *SMALL,
        "--dim=128",
        "--n_layers=4",
        "--dropout=0.1",
        f"--max_iters={max_iters}",
        f"--data_dir={data}",
        "--eval_interval=10",
        "--save_interval=4",
    ]
    rng, hits, env, undisturbed = (
        random.Random(seed),
        [],
        os.environ | ALONE,
        os.path.join(folder, "undisturbed"),
    )
    run("train.py", *knobs, f"--out_dir={undisturbed}", env=env)
    while len(hits) < kills:
        out, said = tempfile.mkdtemp(dir=folder), ""
        while "finished" not in said:
            resume = any(os.path.exists(os.path.join(out, name)) for name in ("last.pt", "ckpt.pt"))
            args = ("--init_from=resume", "--device=cpu") if resume else knobs
            process = subprocess.Popen(
                [sys.executable, "train.py", *args, f"--out_dir={out}"],
                cwd=HERE,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            number = rng.choice(SIGNALS)
            hit = kill_at(rng.choice(moments), process, number, out, rng) if len(hits) < kills else None
            said = process.communicate(timeout=300)[0]
            if hit:
                hits.append((hit, number.name))
                print(
                    f"kill {len(hits)}: {number.name}, {hit}; {len(log_lines(out))} lines in the log",
                    flush=True,
                )
            assert process.returncode in (0, -number) or hit and "interrupted" in said, said
        assert_same_run(out, undisturbed, 0)
        got, want = (torch.load(os.path.join(o, "last.pt"), weights_only=True) for o in (out, undisturbed))
        assert all(torch.equal(got["model"][k], w) for k, w in want["model"].items()), out
        for i, state in want["optimizer"]["state"].items():
            assert all(torch.equal(got["optimizer"]["state"][i][k], v) for k, v in state.items()), out
        assert got["best_val_loss"] == want["best_val_loss"] and not [
            p for p in os.listdir(out) if p.endswith(".tmp")
        ]
    return {hit: hits.count(hit) for hit in sorted(set(hits))}


def kill_at(moment, process, number, out, rng):
    """Send a signal at a moment of a run; returns where it hit, None where the run had ended before."""
    old = log_inode(out)

    def has_come():
        lines = log_lines(out) if log_inode(out) != old else []  # it writes its log anew when it begins
        if moment == "save":
            return lines and half_saved(out)
        if moment == "evaluation":
            return lines and '9, "loss"' in lines[-1]
        return lines or moment == "start"

    while process.poll() is None and not has_come():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, {"start": 4, "step": 1, "evaluation": 0.5, "save": 0.02}[moment]))
    if process.poll() is not None:
        return None
    process.send_signal(number)
    process.wait(timeout=300)
    return f"in a {moment}" + "".join(f", half a {name} is left" for name in half_saved(out))


def half_saved(out):
    return [name for name in ("last.pt", "ckpt.pt") if os.path.exists(os.path.join(out, f"{name}.tmp"))]


def log_inode(out):
    path = os.path.join(out, "log.jsonl")
    return os.stat(path).st_ino if os.path.exists(path) else 0


def log_lines(out):
    """The whole lines of a log that is being written."""
    if not log_inode(out):
        return []
    with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as f:
        return f.read().split("\n")[:-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        run("tinystories.py", "synthesize", f"--data_dir={scratch}", "--megabytes=2")
        run("tinystories.py", "pretokenize", f"--data_dir={scratch}", "--vocab_size=512")
        began, hits = time.time(), tortured(int(sys.argv[1]), scratch, scratch)
    for (where, name), count in hits.items():
        print(f"{count:>4}  {name:<8} {where}")
    print(
        f"{sum(hits.values())} kills in {time.time() - began:.0f} s; "
        "every run ended as the undisturbed one, bit by bit"
    )
