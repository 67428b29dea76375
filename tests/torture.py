"""
Kill a small run again and again at random moments, mostly by SIGKILL, resume it each time, and compare its
end bit for bit with that of an undisturbed run. It needs no data; it writes to a temporary folder.

    python -m tests.torture 20
    python -m tests.torture quickstart 20        the same for quickstart.sh, in three of its modes
"""

import os
import random
import re
import shutil
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
    """Kill `kills` times; each run that ends is compared with an undisturbed one. [(moment, signal)]"""
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
                print(f"kill {len(hits)}: {number.name}, {hit}", flush=True)
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
    old = read_log(out)

    def has_come():
        text = read_log(out)
        if text == old:
            return moment == "start"
        if moment == "evaluation":
            return re.search('9, "loss".*\n$', text)
        return half_saved(out) if moment == "save" else True

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


def read_log(out):
    log = Path(out, "log.jsonl")
    return log.read_text(encoding="utf-8") if log.exists() else ""


TOY = (  # in quickstart.sh: what is replaced, and by what
    (r"--max_iters=\d+", "--max_iters=24"), (r"--eval_interval=\d+", "--eval_interval=8"),
    (r"--dim=\d+ --n_layers=\d+", "--dim=24 --n_layers=1"), (r"megabytes=\d+", "megabytes=1"),
    ("run python train.py", "run python train.py --save_interval=3"),
    ("py synthesize --data_dir", "py synthesize --num_texts=200 --num_chats=200 --data_dir"),
    (r".*run python (-m extras|sample).*\n", ""),  # they only read what is there
)  # fmt: skip


def torture_quickstart(mode, kills, folder):
    """Kill quickstart.sh and all that it has started; AssertionError where it does not end as undisturbed."""
    rng = random.Random(mode)
    template = Path(folder, mode)
    shutil.copytree(HERE, template, ignore=shutil.ignore_patterns(".*", "data*", "out*", "docs"))
    script = Path(HERE, "quickstart.sh").read_text(encoding="utf-8")
    for pattern, new in TOY:
        assert re.search(pattern, script), pattern
        script = re.sub(pattern, new, script)
    (template / "quickstart.sh").write_text(script, encoding="utf-8")
    python = template / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    python.with_name("activate").write_text("#")
    shutil.copy(Path(HERE, "requirements.txt"), template / ".venv")  # as if it were installed
    if mode == "tinystories":  # in place of a download
        run("tinystories.py", "synthesize", f"--data_dir={template}/data_tinystories", "--megabytes=1")
    calm = Path(shutil.copytree(template, f"{template}_calm"))
    assert quickstart(calm, mode) == 0
    count = 0
    while count < kills:
        copy = Path(shutil.copytree(template, tempfile.mkdtemp(dir=folder), dirs_exist_ok=True))
        while quickstart(copy, mode, rng.uniform(0, 15) if count < kills else None) != 0:
            count += 1
        files, want = ({p.relative_to(f): p for p in f.glob("[do][au]t*/**/*.*")} for f in (copy, calm))
        assert files.keys() == want.keys()
        for name, path in files.items():
            if name.name == "last.pt":
                assert_same_end(path.parent, want[name].parent)
            elif name.suffix not in (".pt", ".png") and name.name != "log.jsonl":
                timeless = {re.sub(rb"\d{19}", b"", p.read_bytes()) for p in (path, want[name])}
                assert len(timeless) == 1, name
        print(f"{mode}: {count} kills; the end is as undisturbed, to the bit", flush=True)


def quickstart(folder, mode, seconds=None):
    """The exit code of quickstart.sh, whose whole group of processes is killed after so many seconds."""
    command = f"OMP_NUM_THREADS=1 exec bash quickstart.sh {mode} >> printed 2>&1"
    process = subprocess.Popen(command, shell=True, cwd=folder, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL), Path(folder, "printed").read_text()
    return process.returncode


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1] == "quickstart":
            for mode in sys.argv[3:] or ("synthetic", "tinystories", "chat"):
                torture_quickstart(mode, int(sys.argv[2]), folder)
            sys.exit()
        began = time.time()
        run("tinystories.py", "synthesize", f"--data_dir={folder}", "--megabytes=2")
        run("tinystories.py", "pretokenize", f"--data_dir={folder}", "--vocab_size=512")
        hits = torture(int(sys.argv[1]), folder)
    for hit in sorted(set(hits)):
        print(f"{hits.count(hit):>4}  {hit[1]:<8} {hit[0]}")
    print(f"{len(hits)} kills, {time.time() - began:.0f} s: all runs ended as the undisturbed, to the bit")
