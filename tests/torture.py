"""
Kill a small run again and again at random moments, mostly by SIGKILL, resume it each time, and compare its
end bit for bit with that of an undisturbed run. It needs no data; it writes to a temporary folder.

    python -m tests.torture 20
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import torch

from tests.fixtures import ALONE, HERE, SMALL, assert_same_run, flags, run

MOMENTS = ("start", *["step"] * 3, *["evaluation"] * 2, *["save"] * 3)
SIGNALS = (*[signal.SIGKILL] * 4, signal.SIGINT, signal.SIGTERM)
AFTER = {"start": 4, "step": 1, "evaluation": 0.5, "save": 0.02}  # at most so many seconds after the moment
OPTIONS = SMALL + flags(dim=128, n_layers=4, dropout=0.1, max_iters=120, eval_interval=10, save_interval=4)


def torture(kills, folder):
    """
    Kill `kills` times; a run that ends before that is compared, and another one begins. AssertionError where
    one ends with other weights, optimizer state or log than an undisturbed run. Returns [(moment, signal)].
    """
    rng = random.Random(0)
    undisturbed = os.path.join(folder, "undisturbed")
    options = [*OPTIONS, f"--data_dir={folder}"]
    run("train.py", *options, f"--out_dir={undisturbed}", env=os.environ | ALONE)
    hits = []
    while len(hits) < kills:
        out = tempfile.mkdtemp(dir=folder)
        printed = ""
        while "finished" not in printed:
            resumes = os.path.exists(f"{out}/last.pt") or os.path.exists(f"{out}/ckpt.pt")
            args = ["--init_from=resume", "--device=cpu"] if resumes else options
            process = subprocess.Popen(
                [sys.executable, "train.py", *args, f"--out_dir={out}"],
                cwd=HERE, env=os.environ | ALONE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            number = rng.choice(SIGNALS)
            hit = kill_at(rng.choice(MOMENTS), process, number, out, rng) if len(hits) < kills else None
            printed = process.communicate(timeout=300)[0]
            assert process.returncode in (0, -number) or (hit and "interrupted" in printed), printed
            if hit:
                hits.append((hit, number.name))
                rows = len(log_lines(out))
                print(f"kill {len(hits)}: {number.name}, {hit}; {rows} rows in the log", flush=True)
        assert_same_end(out, undisturbed)
    return hits


def assert_same_end(out, undisturbed):
    assert_same_run(out, undisturbed, tolerance=0)
    got, want = (torch.load(f"{folder}/last.pt", weights_only=True) for folder in (out, undisturbed))
    assert all(torch.equal(got["model"][name], weight) for name, weight in want["model"].items()), out
    for i, state in want["optimizer"]["state"].items():
        assert all(torch.equal(got["optimizer"]["state"][i][key], value) for key, value in state.items()), out
    assert got["best_val_loss"] == want["best_val_loss"]
    assert set(os.listdir(out)) == set(os.listdir(undisturbed))  # no half of a file is left


def kill_at(moment, process, number, out, rng):
    """Send a signal at a moment of a run. Returns where it hit, or None where the run had ended before."""
    old = log_inode(out)

    def has_come():
        rows = log_lines(out) if log_inode(out) != old else []  # a run that begins writes a new log
        if moment == "save":
            return rows and half_saved(out)
        if moment == "evaluation":
            return rows and '9, "loss"' in rows[-1]
        return rows or moment == "start"

    while process.poll() is None and not has_come():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, AFTER[moment]))
    if process.poll() is not None:
        return None
    process.send_signal(number)
    process.wait(timeout=300)
    return f"in a {moment}" + "".join(f", half a {name} is left" for name in half_saved(out))


def half_saved(out):
    return [name for name in ("last.pt", "ckpt.pt") if os.path.exists(f"{out}/{name}.tmp")]


def log_inode(out):
    return os.stat(f"{out}/log.jsonl").st_ino if os.path.exists(f"{out}/log.jsonl") else 0


def log_lines(out):
    """The complete rows of a log that is being written."""
    if not log_inode(out):
        return []
    with open(f"{out}/log.jsonl", encoding="utf-8") as f:
        return f.read().split("\n")[:-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        run("tinystories.py", "synthesize", f"--data_dir={folder}", "--megabytes=2")
        run("tinystories.py", "pretokenize", f"--data_dir={folder}", "--vocab_size=512")
        hits = torture(int(sys.argv[1]), folder)
    for hit in sorted(set(hits)):
        print(f"{hits.count(hit):>4}  {hit[1]:<8} {hit[0]}")
    print(f"{len(hits)} kills, {time.time() - began:.0f} s: all runs ended as the undisturbed, to the bit")
