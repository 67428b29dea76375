"""
Kill a small run again and again at random moments, mostly by SIGKILL, resume it each time, and compare its
end bit for bit with that of an undisturbed run. It needs no data; it writes to a temporary folder.

    python -m tests.torture 20
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.fixtures import ALONE, HERE, SMALL, assert_same_run, flags, run

MOMENTS = ("start", *["step"] * 3, *["evaluation"] * 2, *["save"] * 3)
SIGNALS = (*[signal.SIGKILL] * 4, signal.SIGINT, signal.SIGTERM)
AFTER = {"start": 4, "step": 1, "evaluation": 0.5, "save": 0.02}  # at most so many seconds after the moment
OPTIONS = SMALL + flags(dim=128, n_layers=4, dropout=0.1, max_iters=120, eval_interval=10, save_interval=4)


def torture(kills, folder):
    """Kill `kills` times; each run that ends is compared with an undisturbed one."""
    rng = random.Random(0)
    undisturbed = os.path.join(folder, "undisturbed")
    options = [*OPTIONS, f"--data_dir={folder}"]
    run("train.py", *options, f"--out_dir={undisturbed}", env=os.environ | ALONE)
    count = 0
    while count < kills:
        out = tempfile.mkdtemp(dir=folder)
        printed = ""
        while "finished" not in printed:
            args = ["--init_from=resume", "--device=cpu"] if list(Path(out).glob("*.pt")) else options
            process = subprocess.Popen(
                [sys.executable, "train.py", *args, f"--out_dir={out}"],
                cwd=HERE, env=os.environ | ALONE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            moment, number = rng.choice(MOMENTS), rng.choice(SIGNALS)
            hit = count < kills and kill_at(moment, process, number, out, rng)
            printed = process.communicate(timeout=300)[0]
            assert process.returncode in (0, -number) or (hit and "interrupted" in printed), printed
            if hit:
                count += 1
                print(f"kill {count}: {number.name} in a {moment}", flush=True)
        assert_same_end(out, undisturbed)
        print("this run ended as the undisturbed, to the bit", flush=True)


def assert_same_end(out, undisturbed):
    assert_same_run(out, undisturbed, tolerance=0)
    got, want = (torch.load(f"{folder}/last.pt", weights_only=True) for folder in (out, undisturbed))
    assert all(torch.equal(got["model"][name], weight) for name, weight in want["model"].items()), out
    for i, state in want["optimizer"]["state"].items():
        assert all(torch.equal(got["optimizer"]["state"][i][key], value) for key, value in state.items()), out
    assert got["best_val_loss"] == want["best_val_loss"]
    assert set(os.listdir(out)) == set(os.listdir(undisturbed))  # no half of a file is left


def kill_at(moment, process, number, out, rng):
    """Send a signal at a moment of a run. Returns False where the run had ended before."""
    old = read_log(out)

    def has_come():
        if moment == "start":
            return True
        if moment == "save":
            return list(Path(out).glob("*.pt.tmp"))
        text = read_log(out)
        return text != old and (moment == "step" or re.search('9, "loss".*\n$', text))

    while process.poll() is None and not has_come():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, AFTER[moment]))
    if process.poll() is not None:
        return False
    process.send_signal(number)
    process.wait(timeout=300)
    return True


def read_log(out):
    log = Path(out, "log.jsonl")
    return log.read_text(encoding="utf-8") if log.exists() else ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run("tinystories.py", "synthesize", f"--data_dir={folder}", "--megabytes=2")
        run("tinystories.py", "pretokenize", f"--data_dir={folder}", "--vocab_size=512")
        torture(int(sys.argv[1]), folder)
