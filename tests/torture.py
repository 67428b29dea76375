"""
Kill a small run again and again at random moments, mostly by SIGKILL, resume it each time, and compare its
end bit for bit with that of an undisturbed run. It needs no data; it writes to a temporary folder.

    python -m tests.torture 20             20 kills of train.py
    python -m tests.torture 20 chat        20 of quickstart.sh chat, in a copy with small numbers
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import torch

from tests.fixtures import ALONE, HERE, SMALL, assert_same_run, flags, read_bytes, run

MOMENTS = ("start", *["step"] * 3, *["evaluation"] * 2, *["save"] * 3)
SIGNALS = (*[signal.SIGKILL] * 4, signal.SIGINT, signal.SIGTERM)
AFTER = {"start": 4, "step": 1, "evaluation": 0.5, "save": 0.02}  # at most so many seconds after the moment
OPTIONS = SMALL + flags(dim=128, n_layers=4, dropout=0.1, max_iters=120, eval_interval=10, save_interval=4)

TOY = {  # what quickstart.sh says: what its copy says
    "megabytes=30": "megabytes=2",
    "vocab=2048": "vocab=512",
    "--max_iters=4000": "--max_iters=60",
    "--eval_interval=1000": "--eval_interval=20",
    "--dim=192 --n_layers=4 --n_heads=6 --n_kv_heads=6 --batch_size=16": "--dim=64 --batch_size=4",
    "--max_iters=1000": "--max_iters=60",
    "--eval_interval=250": "--eval_interval=20",
    "--max_iters=300 --eval_interval=100": "--max_iters=60 --eval_interval=20",
    "--max_iters=4800 --eval_interval=800": "--max_iters=60 --eval_interval=20",
    "--schedule=wsd)": "--schedule=wsd --compile=false --dtype=float32 --save_interval=10)",
    "prepare_data.py synthesize": "prepare_data.py synthesize --num_texts=300 --num_chats=400",
    "--max_new_tokens=400": "--max_new_tokens=20",
    "--num_stories=64": "--num_stories=4",
}


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


def torture_quickstart(kills, folder, mode):
    """
    The same with the whole of quickstart.sh, virtual environment included. A signal goes to all of its
    processes, as Ctrl-C and a closed terminal do, or to bash alone. Returns [(command that ran, signal)].
    """
    rng = random.Random(0)
    undisturbed = copy_tree(folder, mode)
    began = time.time()
    assert start_quickstart(undisturbed, mode).wait() == 0, (undisturbed / "printed").read_text()
    duration = time.time() - began
    print(f"undisturbed: {duration:.0f} s", flush=True)
    hits = []
    while len(hits) < kills:
        tree = copy_tree(folder, mode)
        process = None
        while process is None or process.returncode:
            process = start_quickstart(tree, mode)
            number, alone = rng.choice((*SIGNALS, signal.SIGHUP)), rng.random() < 0.5
            try:
                process.wait(rng.uniform(0, 0.6 * duration) if len(hits) < kills else 20 * duration)
            except subprocess.TimeoutExpired:
                assert len(hits) < kills, "it hangs"
                (os.kill if alone else os.killpg)(process.pid, number)
                process.wait(20 * duration)
                commands = [line for line in (tree / "printed").read_text().split("\n") if line[:2] == "$ "]
                hits.append((" ".join(commands[-1:])[2:40], number.name))
                print(
                    f"kill {len(hits)}: {number.name}, {'bash alone' if alone else 'all'}: {hits[-1][0]}",
                    flush=True,
                )
            else:
                assert process.returncode == 0, (tree / "printed").read_text()
        assert_same_tree(tree, undisturbed)
        print("the same as undisturbed", flush=True)
    return hits


def copy_tree(folder, mode):
    """The files of the repository, with a quickstart.sh of small numbers and no packages to install."""
    tree = Path(tempfile.mkdtemp(dir=folder))
    for name in subprocess.check_output(["git", "ls-files"], cwd=HERE, text=True).split():
        os.makedirs(os.path.dirname(tree / name), exist_ok=True)
        shutil.copy(f"{HERE}/{name}", tree / name)
    script = (tree / "quickstart.sh").read_text()
    for text, small in TOY.items():
        assert text in script, f"quickstart.sh has no {text}"
        script = script.replace(text, small)
    (tree / "quickstart.sh").write_text(script)
    (tree / "requirements.txt").write_text("")
    if mode == "tinystories":  # instead of a download
        run("tinystories.py", "synthesize", f"--data_dir={tree}/data_tinystories", "--megabytes=2")
    return tree


def start_quickstart(tree, mode):
    env = os.environ | ALONE | {"PYTHON": sys.executable, "PYTHONPATH": sysconfig.get_path("purelib")}
    with open(tree / "printed", "w") as printed:
        return subprocess.Popen(
            ["bash", "quickstart.sh", mode], cwd=tree, env=env | {"CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def assert_same_tree(tree, undisturbed):
    """All data to the byte, all runs to the bit, and no file that the undisturbed has not."""
    files = [{p.relative_to(root) for p in root.glob("[do][au]t*/**/*")} for root in (tree, undisturbed)]
    assert files[0] == files[1], files[0] ^ files[1]
    for name in files[0]:
        if name.suffix in (".bin", ".mask", ".model", ".jsonl", ".html") and name.name != "log.jsonl":
            assert read_bytes(tree / name) == read_bytes(undisturbed / name), name
        if name.name == "last.pt":
            assert_same_end(str((tree / name).parent), str((undisturbed / name).parent))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        if len(sys.argv) > 2:
            hits = torture_quickstart(int(sys.argv[1]), folder, sys.argv[2])
        else:
            run("tinystories.py", "synthesize", f"--data_dir={folder}", "--megabytes=2")
            run("tinystories.py", "pretokenize", f"--data_dir={folder}", "--vocab_size=512")
            hits = torture(int(sys.argv[1]), folder)
    for hit in sorted(set(hits)):
        print(f"{hits.count(hit):>4}  {hit[1]:<8} {hit[0]}")
    print(f"{len(hits)} kills, {time.time() - began:.0f} s: all runs ended as the undisturbed, to the bit")
