"""
Loss curves of one run, or of several side by side.

Reads  log.jsonl (train.py)
Writes loss.png beside the first of them

    python -m extras.plot --log=output/log.jsonl
    python -m extras.plot --log=output_adamw/log.jsonl,output_muon/log.jsonl --out=compare.png

train.py draws its own at each evaluation, where matplotlib is installed: pip install matplotlib
"""

import json
import os

from configurator import import_optional, override

log = "output/log.jsonl"  # the log of a run; several with commas between them
out = ""  # the picture; '' is loss.png beside the first log


def draw(paths, out):
    """
    The training loss of each step, pale, and the losses of both splits at each evaluation. Where the log
    knows the limit of its stories (extras/synthetic_stories.py), a dotted line: what a perfect model has.
    Below, where train.py ran with --story_check: how many stories keep what they speak of.
    """
    plt = import_optional("matplotlib.pyplot", "a picture of the loss")
    plt.switch_backend("agg")  # no window
    logs = {path: read_log(path) for path in paths}
    checked = any(key.startswith("story_") for rows in logs.values() for row in rows for key in row)
    fig, axes = plt.subplots(1 + checked, figsize=(7, 4 + 3 * checked), sharex=True, squeeze=False)
    ax = axes[0, 0]
    for color, (path, rows) in zip(plt.cm.tab10.colors * len(paths), logs.items()):
        name = os.path.basename(os.path.dirname(os.path.abspath(path)))
        for key, style, alpha in (("loss", "-", 0.3), ("train_loss", "x", 1), ("val_loss", "o-", 1)):
            points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
            ax.plot(*zip(*points) or ((), ()), style, color=color, alpha=alpha, label=f"{name}: {key}")
        limit = limit_in_nats(rows)
        if limit is not None:
            ax.axhline(limit, linestyle=":", color=color, label=f"{name}: limit, {limit:.2f}")
    ax.set(ylabel="loss (nats per token)")
    ax.legend(fontsize=8)
    if checked:
        draw_stories(axes[1, 0], logs)
    axes[-1, 0].set(xlabel="step")
    fig.savefig(out, dpi=120, bbox_inches="tight")
    plt.close(fig)


def read_log(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def draw_stories(ax, logs):
    """The share of stories that have each property of extras/story_check.py, at each evaluation."""
    for style, (path, rows) in zip(("o-", "x--", "s:", "^-.") * len(logs), logs.items()):
        rows = [row for row in rows if any(key.startswith("story_") for key in row)]
        name = os.path.basename(os.path.dirname(os.path.abspath(path)))
        keys = sorted({key for row in rows for key in row if key.startswith("story_")})
        for color, key in zip("C0 C1 C2 C3 C4 C5 C6 C7 C8 C9".split(), keys):
            points = [(row["step"], 100 * row[key]) for row in rows if row.get(key) is not None]
            label = f"{name}: {key.removeprefix('story_').replace('_', ' ')}"
            ax.plot(*zip(*points) or ((), ()), style, color=color, label=label)
    ax.set(ylabel="stories (%)", ylim=(-3, 103))
    ax.legend(fontsize=8)


def limit_in_nats(rows):
    """The limit of the validation stories in nats per token, or None: in the ratio of the loss to val_bpb."""
    for row in rows:
        if row.get("limit_bpb") and row.get("val_bpb") and row.get("val_loss"):
            return row["limit_bpb"] * row["val_loss"] / row["val_bpb"]
    return None


if __name__ == "__main__":
    override(globals())
    paths = log.split(",")
    out = out or os.path.join(os.path.dirname(paths[0]), "loss.png")
    draw(paths, out)
    print(f"wrote {out}")
