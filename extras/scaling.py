"""
A laboratory for scaling laws: how the loss follows from a model's size and its data, and a prediction.

    pip install matplotlib
    python -m extras.scaling     about 4 minutes on a CPU

Trains a grid, four sizes by four numbers of tokens, by train.py on stories, one run at a time.
Fits to the validation losses (Hoffmann et al. 2022, arXiv:2203.15556, "Chinchilla")

    L(N, D) = E + A / N^a + B / D^a      N: parameters in products; D: tokens trained on; L: nats per token

writes down what it predicts for a run of four times the largest one's FLOPs, and only then does that run.
Kaplan et al. 2020 (arXiv:2001.08361) found the power laws; nanoGPT's scaling notebook and nanochat's series
of small models are such laboratories, too.

Reads  the stories of --data_dir, or makes them: 30 MB, with a tokenizer of --vocab_size
Writes output_scaling/dim32_100000/log.jsonl ..., results.json (the losses, the fit, the prediction, and what
       came), scaling.png. Run again, it does only what is missing; other options need another --out_dir.

Hoffmann et al. give N and D an exponent each, and find them about equal. Here one serves both: with two, the
fit follows the noise of sixteen short runs (docs/experiments.md).

A law holds as long as nothing new begins. By default all runs end before names begin to be copied, and the
prediction is off by 3 % at most. With --base_tokens=50000 some runs have learned to copy and others have not:
copying begins suddenly, the law has no steps, and is off by up to 10 % (docs/experiments.md).

Why do recipes speak of 20 tokens per parameter? A budget of C = 6 N D FLOPs can go into a large model or
into many tokens. A law says which N and D give the lowest loss: see best_split. With one exponent both grow
with the square root of C, and their ratio is a constant; Hoffmann et al. found about 20 tokens for each
parameter. It is no constant of nature: another text, tokenizer or optimizer has another law.

Each run has a learning rate schedule of its own length: a loss in the middle of a longer run, with its higher
learning rate, is no point of the curve. The sizes keep the number of layers, and the width grows.
"""

import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np

from configurator import InputError, override, read_json, write_json
from extras import import_optional

data_dir = "data"  # the folder of the stories' folder; by default the quick start's
out_dir = "output_scaling"  # for the runs and the results
vocab_size = 1024  # of the tokenizer; by default the quick start's
base_tokens = 12_800  # of the shortest runs; the others have two, four and eight times as many
learning_rate = 1e-2  # of Muon, for a width of 64; another width takes it times sqrt(64 / width)
threads = 0  # of each run; 0: torch's own number
seed = 1337  # at least 0, below 4e9: of each run

DIMS = (32, 48, 64, 96)  # widths; 4 layers
LARGER_DIM = 192  # of the run that is predicted
BATCH = (2, 256)  # sequences, tokens in each


def num_params(dim):
    """Parameters that a token is multiplied with: those of the blocks, and the table as output projection."""
    hidden_dim = math.ceil(8 * dim / 3 / 32) * 32
    return 4 * (4 * dim * dim + 3 * dim * hidden_dim) + vocab_size * dim


def flops(dim, tokens):
    """Of a run's forward and backward passes: 6 N D, without attention's products of positions."""
    return 6 * num_params(dim) * tokens


def loss_of(dim, tokens):
    """A run's loss on 25 validation batches, the same for all; train.py makes it, if it has not been made."""
    steps = max(20, round(tokens / math.prod(BATCH)))
    folder = f"{out_dir}/dim{dim}_{tokens}"
    if not os.path.exists(f"{folder}/loss.json"):
        options = {
            "out_dir": folder, "data_dir": data_dir, "vocab_size": vocab_size, "dim": dim, "n_layers": 4,
            "n_heads": dim // 16, "n_kv_heads": dim // 16, "batch_size": BATCH[0],
            "max_seq_len": BATCH[1], "gradient_accumulation_steps": 1, "max_iters": steps, "eval_iters": 25,
            "eval_interval": steps, "save_interval": steps, "warmup_iters": 10, "optimizer": "muon",
            "learning_rate": learning_rate * (64 / dim) ** 0.5, "schedule": "wsd", "seed": seed,
            "compile": "false",  # some runs take less time than compiling
        }  # fmt: skip
        if os.path.exists(f"{folder}/last.pt"):
            options = {"init_from": "resume", "out_dir": folder}
        run("train.py", **options)
        with open(f"{folder}/log.jsonl", encoding="utf-8") as f:
            rows = [json.loads(line) for line in f]
        write_json(f"{folder}/loss.json", [row["val_loss"] for row in rows if "val_loss" in row][-1:])
    return read_json(f"{folder}/loss.json", list)[0]


def run(script, command=None, **options):
    """A script of the course, as one starts it; its own words go to a file beside the runs."""
    words = [sys.executable, script, *([command] if command else [])]
    words += [f"--{key}={value}" for key, value in options.items()]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    os.makedirs(out_dir, exist_ok=True)
    with open(f"{out_dir}/output.txt", "a", encoding="utf-8") as f:
        if subprocess.run(words, env=environment, stdout=f, stderr=f).returncode:
            raise InputError(f"{script} failed: {out_dir}/output.txt says why")


def predict(law, N, D):
    """L(N, D) of a law (E, A, B, a)."""
    E, A, B, a = law
    return E + A / N**a + B / D**a


def best_split(law, budget):
    """
    (N, D) of the lowest loss for a budget of 6 N D FLOPs. With D = budget / 6 N the law is a function of N,
    whose derivative is 0 where A / N^a = B / D^a: D / N is the same for each budget.
    """
    _, A, B, a = law
    tokens_per_parameter = (B / A) ** (1 / a)
    N = math.sqrt(budget / 6 / tokens_per_parameter)
    return N, N * tokens_per_parameter


def fit(points):
    """
    The law (E, A, B, a) for [(N, D, loss)]: exponents in steps of 0.02 are tried, and the best with
    E, A, B >= 0 is taken. For a given exponent the law is linear in E, A and B: least squares. An error above
    0.5 % counts by its size instead of its square (Huber's loss, as Hoffmann et al. have it, with another
    threshold: theirs is 1e-3 of the loss's logarithm), so that one run that went wrong does not bend the
    law: the least squares are repeated, and a larger error has a smaller weight.
    """
    N, D, loss = np.array(points, float).T
    best = (math.inf, None)
    for a in np.arange(0.04, 1.5, 0.02):
        columns = np.stack([np.ones_like(N), (N / N[0]) ** -a, (D / D[0]) ** -a], axis=1) / loss[:, None]
        weight = np.ones_like(loss)
        for _ in range(3):
            solution = np.linalg.lstsq(columns * weight[:, None], weight, rcond=None)[0]
            error = abs(columns @ solution - 1)
            weight = np.sqrt(np.minimum(1, 0.005 / error.clip(1e-9)))
        total = np.where(error < 0.005, error**2, 0.01 * error - 0.005**2).sum()
        if total < best[0] and (solution >= 0).all():
            E, A, B = solution
            best = (total, [float(x) for x in (E, A * N[0] ** a, B * D[0] ** a, a)])
    if best[1] is None:
        raise InputError("no law fits: the losses do not fall with size and data")
    return best[1]


def envelope(points):
    """Of [(FLOPs, loss)] those that no cheaper run beats, the cheapest first."""
    best = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def draw(results, path):
    """Loss against FLOPs: a line for each size, the envelope, the prediction and what came."""
    plt = import_optional("matplotlib.pyplot", "a picture of the scaling law")
    plt.switch_backend("agg")  # no window
    fig, ax = plt.subplots(figsize=(7, 5))
    runs = [(flops(dim, tokens), loss, dim) for dim, tokens, loss in results["runs"]]
    for dim in DIMS:
        mine = [(f, loss) for f, loss, d in runs if d == dim]
        ax.plot(*zip(*mine), "o-", label=f"{num_params(dim):,} parameters")
    ax.plot(*zip(*envelope([(f, loss) for f, loss, _ in runs])), "k--", label="envelope")
    dim, tokens = results["larger"]
    ax.plot(flops(dim, tokens), results["predicted"], "r_", markersize=20, label="predicted before the run")
    if "measured" in results:
        ax.plot(flops(dim, tokens), results["measured"], "r*", markersize=10, label="measured")
    ax.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="validation loss (nats per token)")
    ax.yaxis.set_minor_formatter("{x:.1f}")
    ax.yaxis.set_major_formatter("{x:.1f}")
    ax.legend(fontsize=8)
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def larger_run():
    """(width, tokens) of a run with four times the FLOPs of the largest in the grid, to a whole step."""
    tokens = 4 * num_params(DIMS[-1]) * 8 * base_tokens / num_params(LARGER_DIM)
    step = math.prod(BATCH)
    return LARGER_DIM, round(tokens / step) * step


def main():
    if base_tokens < 20 * math.prod(BATCH):
        raise InputError(f"base_tokens is at least {20 * math.prod(BATCH):,}: 20 steps")
    if not os.path.exists(f"{data_dir}/tok{vocab_size}/meta.json"):
        if not os.path.exists(f"{data_dir}/TinyStories_all_data"):
            run("tinystories.py", "synthesize", data_dir=data_dir, megabytes=30)
        run("tinystories.py", "pretokenize", data_dir=data_dir, vocab_size=vocab_size)
    runs = []
    for tokens, dim in itertools.product([base_tokens * 2**i for i in range(4)], DIMS):
        runs.append((dim, tokens, loss_of(dim, tokens)))
        print(f"{num_params(dim):9,} parameters, {tokens:9,} tokens: loss {runs[-1][2]:.4f}", flush=True)
    law = fit([(num_params(dim), tokens, loss) for dim, tokens, loss in runs])
    larger = larger_run()
    predicted = predict(law, num_params(larger[0]), larger[1])
    results = {"runs": runs, "law": law, "larger": larger, "predicted": predicted}
    write_json(f"{out_dir}/results.json", results)
    E, A, B, a = law
    print(f"L(N, D) = {E:.3f} + {A:.4g} / N^{a:.2f} + {B:.4g} / D^{a:.2f}")
    size = f"{num_params(larger[0]):,} parameters, {larger[1]:,} tokens"
    print(f"predicted: {size}: loss {predicted:.4f}", flush=True)
    N, D = best_split(law, flops(*larger))
    print(f"the law's best for these FLOPs: {N:,.0f} parameters, {D:,.0f} tokens, {D / N:.1f} per parameter")
    draw(results, f"{out_dir}/scaling.png")
    results["measured"] = loss_of(*larger)
    write_json(f"{out_dir}/results.json", results)
    draw(results, f"{out_dir}/scaling.png")
    error = results["measured"] / predicted - 1
    print(f"measured: {results['measured']:.4f}, {error:+.1%} from the prediction; {out_dir}/scaling.png")


if __name__ == "__main__":
    override(globals())
    main()
