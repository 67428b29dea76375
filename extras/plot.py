"""
Loss curves of one run, or of several side by side.

Reads  log.jsonl (train.py)
Writes loss.png beside the first of them

    python -m extras.plot --log=output/log.jsonl
    python -m extras.plot --log=output_adamw/log.jsonl,output_muon/log.jsonl --out=compare.png

train.py draws its own at each evaluation, where matplotlib is installed: pip install matplotlib
"""

import importlib.util
import json
import os

from tqdm import tqdm

from configurator import atomic_write, first_sentence, override
from extras import import_optional

log = "output/log.jsonl"  # the log of a run; several with commas between them
out = ""  # the picture; '' is loss.png beside the first log


def try_draw(log_path, out):
    """draw() where matplotlib is installed, for train.py: an error is one printed line and ends no run."""
    try:
        if importlib.util.find_spec("matplotlib"):
            draw([log_path], out)
    except Exception as error:  # a matplotlib that does not import, a full disk, a locked file
        tqdm.write(f"{out} is not drawn: {first_sentence(error)}")


def draw(paths, out):
    """
    The training loss of each step, pale, and the losses of both splits at each evaluation. Where the log
    knows the limit of its stories (extras/synthetic_stories.py), a dotted line: what a perfect model has.
    """
    from matplotlib.figure import Figure  # without pyplot, which would look for a window

    fig = Figure(figsize=(7, 4))
    ax = fig.subplots()
    for i, path in enumerate(paths):
        with open(path, encoding="utf-8") as f:
            rows = [json.loads(line) for line in f]
        name = os.path.basename(os.path.dirname(os.path.abspath(path)))
        for key, style, alpha in (("loss", "-", 0.3), ("train_loss", "x", 1), ("val_loss", "o-", 1)):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            ax.plot(*zip(*points) or ((), ()), style, color=f"C{i}", alpha=alpha, label=f"{name}: {key}")
        limit = limit_in_nats(rows)
        if limit is not None:
            ax.axhline(limit, linestyle=":", color=f"C{i}", label=f"{name}: limit, {limit:.2f}")
    ax.set(xlabel="step", ylabel="loss (nats per token)")
    ax.legend(fontsize=8)
    with atomic_write(out, "wb") as f:
        fig.savefig(f, format=os.path.splitext(out)[1][1:] or "png", dpi=120, bbox_inches="tight")


def limit_in_nats(rows):
    """The limit of the validation stories in nats per token, or None: in the ratio of the loss to val_bpb."""
    for row in rows:
        if row.get("limit_bpb") and row.get("val_bpb") and row.get("val_loss"):
            return row["limit_bpb"] * row["val_loss"] / row["val_bpb"]
    return None


if __name__ == "__main__":
    override(globals())
    import_optional("matplotlib", "a picture of the loss")
    paths = log.split(",")
    out = out or os.path.join(os.path.dirname(paths[0]), "loss.png")
    draw(paths, out)
    print(f"wrote {out}")
