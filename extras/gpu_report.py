"""
A report on a GPU: python -m extras.bench --gpu. Its tables are made for docs/experiments.md.

Writes gpu_report.md, and the same to the terminal: tables in Markdown

Each part is a process of its own with a limit of its own: tests/test_cuda.py, the training step at three
sizes, stories, and a training through train.py. A part that fails, or that does not end in time, has a line
that says so, and the next one runs. All of it takes at most BUDGET seconds: what no longer fits is "not run:
no time left". On a CPU, or with --toy, everything has a toy's size.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import torch

from configurator import atomic_write
from devices import device_name

BUDGET = 530  # seconds for all of it
TRAINING = 215  # of these kept for the training: making the data, 3 minutes, a story
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The shape of the tutorial's model, that of the README's 80 million, and one for a CPU.
SMALL_MODEL = {"dim": 288, "n_layers": 8, "n_heads": 8, "n_kv_heads": 4}
SMALL_MODEL |= {"vocab_size": 4096, "max_seq_len": 256}
LARGE_MODEL = {"dim": 768, "n_layers": 12, "n_heads": 12, "n_kv_heads": 4}
LARGE_MODEL |= {"vocab_size": 6144, "max_seq_len": 512}
TOY_MODEL = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 384, "max_seq_len": 32}
TRAIN_COLUMNS = ("median", "ratio", "MFU", "peak memory, GB", "memory by --fit, GB", "first call, s")
SAMPLE_COLUMNS = ("median", "ratio", "first token, ms", "first call, s")


class Report:
    """The lines so far, and the time that is left."""

    def __init__(self, path, device, toy):
        self.path = path
        self.device = device
        self.toy = toy
        self.until = time.time() + BUDGET
        self.lines = []
        self.tokens_per_second = 0  # of the small model, where it was measured

    def add(self, *lines):
        self.lines += lines
        print(*lines, sep="\n", flush=True)
        with atomic_write(self.path) as f:  # after each part: what is measured is not lost
            f.writelines(line + "\n" for line in self.lines)

    def left(self):
        return self.until - time.time()

    def model(self, size):
        return TOY_MODEL if self.toy else size


def flags(**options):
    return [f"--{name}={value}" for name, value in options.items()]


def run(words, seconds):
    """
    Run `python WORDS` for at most so many seconds: (what it printed, why it failed or ""). When the time is
    over it gets an interrupt, on which train.py saves its state, and 20 seconds later it is ended, together
    with the processes that it has started.
    """
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    failure = ""
    try:
        printed = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        failure = f"stopped after {seconds:.0f} s"
        os.killpg(process.pid, signal.SIGINT)
        try:
            printed = process.communicate(timeout=20)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed = process.communicate()[0]
    if process.returncode and not failure:
        failure = "failed: " + (printed.strip().splitlines() or ["it printed nothing"])[-1]
    return printed, failure


def seconds_for(report, least, most):
    """The limit of a part that comes before the training; None where less than `least` is left for it."""
    left = report.left() - TRAINING
    return min(most, left) if left >= least else None


def table(rows, columns):
    """Rows of extras/bench.py as a table in Markdown, with those of the columns that any row has."""
    columns = [column for column in columns if any(column in row for row in rows)]
    measured = next((row for row in rows if "median" in row), {"unit": "speed", "against": "the first"})
    titles = {"median": measured["unit"], "ratio": f"against {measured['against']}"}
    yield "| way | " + " | ".join(titles.get(column, column) for column in columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in rows:
        cells = [str(row.get(column, "")) for column in columns]
        if "median" in row:
            cells[columns.index("median")] = f"{row['median']:,.0f} [{row['low']:,.0f} .. {row['high']:,.0f}]"
            ratios = f"{row['ratio']:.2f} [{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}]"
            cells[columns.index("ratio")] = ratios
        if "not run" in row:
            cells[0] = f"not run: {row['not run']}"
        yield f"| {row['what']} | " + " | ".join(cells) + " |"


def run_tests(report):
    """tests/test_cuda.py: its summary, and the tests that failed or were skipped."""
    report.add("", "## tests/test_cuda.py", "")
    seconds = seconds_for(report, 30, 150)
    if seconds is None:
        return report.add("not run: no time left")
    words = ["-m", "pytest", "tests/test_cuda.py", "-k", "not cpu", "-q", "--tb=line", "-rfEs"]
    printed, failure = run([*words, "-p", "no:cacheprovider"], seconds)
    lines = printed.strip().splitlines()
    if failure.startswith("stopped"):
        report.add(failure)
    for line in lines:
        if line.startswith(("FAILED", "ERROR", "SKIPPED")):
            report.add(f"- {line}")
    report.add("", lines[-1].strip("= ") if lines else failure)


def bench_part(report, title, columns, least, most, **options):
    """A part of extras/bench.py as a table; returns its rows."""
    report.add("", f"## {title}", "")
    seconds = seconds_for(report, least, most)
    if seconds is None:
        report.add("not run: no time left")
        return []
    options |= {"device": report.device, "rounds": 1 if report.toy else 3}
    if report.toy:
        options |= {"compile": "false", "transformers": False, "new_tokens": 4}
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "bench.json")
        # No way is begun that might not end in time.
        settings = flags(out=out, max_seconds=int(0.6 * seconds), **options)
        printed, failure = run(["-m", "extras.bench", *settings], seconds)
        rows = []
        if os.path.exists(out):
            with open(out, encoding="utf-8") as f:
                rows = json.load(f)["rows"]
    shown = " ".join(flags(**options))
    report.add(f"`python -m extras.bench {shown}`", "")
    if failure:
        report.add(failure, "", *[f"    {line}" for line in printed.strip().splitlines()[-15:]])
    if rows:
        report.add(*table(rows, columns))
    return rows


def step_part(report, name, model, batch_size, accumulation, least, most):
    """The training step of a model: tokens per second, MFU, memory."""
    shape = report.model(model) | {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    if report.toy:
        shape["batch_size"] = 2
    title = f"Training step, {name}, {accumulation} x {shape['batch_size']} x {shape['max_seq_len']} tokens"
    rows = bench_part(report, title, TRAIN_COLUMNS, least, most, only="train", **shape)
    speeds = [row["median"] for row in rows if row["what"].startswith("train.py, muon") and "median" in row]
    if model is SMALL_MODEL and speeds:
        report.tokens_per_second = max(speeds)


def story_part(report):
    """Decoding: one story, and 64 at a time."""
    model = report.model(SMALL_MODEL)
    options = {"only": "sample", "stories": "1,2" if report.toy else "1,64"}
    bench_part(report, "Stories, 8.5M", SAMPLE_COLUMNS, 40, 90, **options, **model)


def training_part(report):
    """Synthetic stories, a training of as many steps as 3 minutes hold, its losses and a story."""
    report.add("", "## Training on synthetic stories", "")
    if report.left() < 60:
        return report.add("not run: no time left")
    with tempfile.TemporaryDirectory() as folder:
        model = report.model(SMALL_MODEL)
        data = flags(data_dir=folder, vocab_size=model["vocab_size"])
        megabytes = 0.5 if report.toy else min(200, 12 * os.cpu_count())
        commands = [
            ["tinystories.py", "synthesize", *flags(data_dir=folder, megabytes=megabytes)],
            ["tinystories.py", "pretokenize", *data, *flags(num_shards=10 if report.toy else 2)],
        ]
        for words in commands:
            printed, failure = run(words, report.left())
            if failure:
                return report.add(f"{' '.join(words[:2])} {failure}")
        train(report, folder, model)


def training_options(report, model, seconds):
    """The quick start's recipe for a GPU, with as many steps as so many seconds hold."""
    batch_size = 2 if report.toy else 128
    speed = report.tokens_per_second or 200_000
    # 20 s go to compiling, a tenth to evaluations.
    steps = max(50, int(0.9 * (seconds - 20) * speed / (batch_size * model["max_seq_len"])))
    if report.toy:
        steps = 6
    schedule = {"max_iters": steps, "warmup_iters": min(100, steps // 10), "schedule": "wsd"}
    often = {"eval_interval": max(1, steps // 3), "log_interval": 1 if report.toy else 10}
    often["eval_iters"] = 1 if report.toy else 50
    return {
        **model,
        "batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        **schedule,
        **often,
        "optimizer": "muon",
        "learning_rate": 7e-3,
        "device": report.device,
        "compile": "false" if report.toy else "auto",
    }


def train(report, folder, model):
    """train.py on the shards in `folder`, and what it wrote."""
    out = os.path.join(folder, "output")
    seconds = min(180, report.left() - 35)  # a story comes after it
    options = training_options(report, model, seconds)
    report.add(f"`python train.py {' '.join(flags(**options))}`", "")
    began = time.time()
    printed, failure = run(["train.py", *flags(data_dir=folder, out_dir=out, **options)], seconds)
    took = time.time() - began
    if failure:
        report.add(failure, "")
    rows = []
    if os.path.exists(f"{out}/log.jsonl"):
        with open(f"{out}/log.jsonl", encoding="utf-8") as f:
            rows = [json.loads(line) for line in f]
    evaluations = [row for row in rows if "val_loss" in row]
    steps = [row for row in rows if "loss" in row]
    if not evaluations or not steps:
        return report.add(*[f"    {line}" for line in printed.strip().splitlines()[-15:]])
    last = evaluations[-1]
    cells = {
        "steps": last["step"],
        "tokens": f"{steps[-1]['tokens']:,}",
        "seconds": f"{took:.0f}",
        "tokens/s": f"{steps[-1]['tok_per_s']:,}",
        "loss": f"{steps[-1]['loss']:.4f}",
        "validation loss, first": f"{evaluations[0]['val_loss']:.4f}",
        "last": f"{last['val_loss']:.4f}",
        "bits per byte": f"{last['val_bpb']:.4f}",
    }
    report.add("| " + " | ".join(cells) + " |")
    report.add("|---" * len(cells) + "|")
    report.add("| " + " | ".join(map(str, cells.values())) + " |", "")
    write_story(report, out)


def write_story(report, out):
    name = "ckpt.pt" if os.path.exists(f"{out}/ckpt.pt") else "last.pt"
    words = flags(checkpoint=f"{out}/{name}", device=report.device, prompt="One day, Lily met a Shoggoth")
    words += flags(max_new_tokens=20 if report.toy else 250)
    printed, failure = run(["sample.py", *words], max(10, report.left()))
    report.add(*[f"> {line}" for line in (failure or printed).strip().splitlines()])


def write_report(path, device, toy):
    """All parts, into the file `path`."""
    report = Report(path, device, toy)
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}"
    report.add(f"# {device_name(device)}, {versions}")
    report.add("", time.strftime("%Y-%m-%d") + (", at a toy's size" if toy else ""))
    run_tests(report)
    step_part(report, "8.5M, the tutorial's batch", SMALL_MODEL, 8, 4, 40, 90)
    if not toy:  # the toy is one model
        step_part(report, "80M", LARGE_MODEL, 64, 8, 50, 110)
    story_part(report)
    if not toy:
        step_part(report, "8.5M", SMALL_MODEL, 128, 1, 40, 80)
    training_part(report)
    report.add("", f"{BUDGET - report.left():.0f} s in all")
