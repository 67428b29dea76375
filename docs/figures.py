"""
The pictures of the course, drawn from what the code does. Each has colours for a light and for a dark page.

Reads  output/ckpt.pt and output/log.jsonl (a run of quickstart.sh), tokenizer_k/ (train_tokenizer.py)
Writes docs/figures/NAME.svg, as wide as a README on GitHub; chinese.py translates them

    python docs/figures.py                     all: shapes learning valley look_back (minimal_figures.py),
                                               data decoder gqa rope loss lr muon cache head mask
    python docs/figures.py --only=rope,loss    some

What is missing is said in a line, and the other pictures are drawn. `cache` measures (a minute on a machine
that does nothing else); the others are the same, byte for byte, for the same input. copying.svg is kept as
it was drawn: it shows what extras/story_check.py counted at each evaluation of a run. What draws is in
drawing.py, what is drawn comes from observe.py. Needs matplotlib: pip install matplotlib
"""

import math
import os
import sys
import unicodedata

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the course's own files

import drawing as d
from minimal_figures import learning, look_back, shapes, valley
from observe import copying_head, from_train, logged, outputs_of, seconds_a_token, trained

from configurator import InputError, override
from extras import synthetic_stories
from extras.muon import orthogonalize
from model import Attention, ModelArgs, apply_rotary_emb, load_checkpoint, precompute_freqs_cis
from prepare_data import convert_message
from tokenizer import Tokenizer

checkpoint = "output/ckpt.pt"  # for data, decoder, lr, muon, cache, head
log = "output/log.jsonl"  # for loss, lr
tokenizer = "tokenizer_k"  # for mask: a folder with a chat template
only = ""  # pictures to draw, with commas between them; '' is all
out = "docs/figures"  # the folder to write

PROMPT = "One day, Lily met a Shoggoth"
NAME = "Shoggoth"
CHAT = (
    ("human", "天空为何是蓝色的？"),
    ("assistant", "因为空气散射蓝光。"),
    ("human", "谢谢！"),
    ("assistant", "不客气。"),
)


def data():
    """The stages, their files, and what a story is in each."""
    model, tok = trained(checkpoint)
    story = synthetic_stories.write_shard(42, 1, 1)[0]["story"]  # the first that is trained on
    ids = tok.encode(story, bos=True)[:14]
    T = model.args.max_seq_len
    begin = " ".join(story.split()[:7])
    pieces = "   ".join(map(tok.piece, ids[1:8]))
    raw = np.array(ids, "<u2").tobytes().hex(" ", 2)
    ax = d.sheet(612)
    for x, y, w, name, content in (
        (10, 42, 400, "data/TinyStories_all_data/dataNN.json", f'[{{"story": "{begin} ...'),
        (420, 42, 400, "data/*.jsonl", '{"text": ...}   or   [{"role": ..., "content": ...}]'),
        (10, 145, 400, f"data/tok{tok.n_words}.model", f"{pieces}   ..."),
        (420, 145, 400, "tokenizer_k/", "tokenizer.json, with a chat template beside it"),
        (10, 248, 810, "a folder of shards: dataNN.bin, meta.json; for chats dataNN.mask", f"{raw} ..."),
        (10, 456, 810, "output/", "ckpt.pt   last.pt   log.jsonl   loss.png"),
    ):
        d.named_box(ax, x, y, w, name, content)
    for y, name, row in ((354, "x", ids[:-1]), (387, "y", ids[1:])):
        d.say(ax, 22, y + 14, name, "blue", d.BIG, family="monospace")
        for j, i in enumerate(row):
            d.box(ax, 40 + 53 * j, y, 49, 28, str(i), "orange" if i == ids[5] else "line", d.SMALL)
        d.note(ax, 733, y + 14, f"...  {T} ids")
    for x, y, length, text in (
        (110, 8, 34, "tinystories.py download, or synthesize"),
        (520, 8, 34, "prepare_data.py download, pretrain, sft"),
        (110, 98, 47, "tinystories.py train_vocab"),
        (520, 98, 47, "train_tokenizer.py"),
        (110, 201, 47, "tinystories.py pretokenize"),
        (520, 201, 47, "prepare_data.py pretokenize, or pretokenize_sft"),
        (110, 304, 48, "Task.iter_batches: y is x, one token later"),
        (110, 417, 39, "train.py"),
        (110, 512, 42, "sample.py"),
        (520, 512, 42, "extras/export.py"),
    ):
        d.drop(ax, x, y, length, text)
    d.box(ax, 10, 554, 400, 44, f"{PROMPT} ...")
    d.box(ax, 420, 554, 400, 44, "a model for transformers, llama2.c, GGUF")


def decoder():
    """The whole on the left, a block on the right, and the shapes that a pass over 4 sequences has."""
    model, _ = trained(checkpoint)
    a = model.args
    T = model.args.max_seq_len
    names = ["tok_embeddings", "layers.0", "norm"]
    names += [f"layers.0.{name}" for name in ("attention.wq", "attention.wk", "feed_forward.w1")]
    seen = outputs_of(model, torch.zeros(8, T, dtype=torch.long), names)
    shape = {name: f"({', '.join(map(str, y.shape))})" for name, y in seen.items()}
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    weights = {name: f"{size:,} parameters" for name, size in sizes.items()}
    ax = d.sheet(500)
    d.say(ax, 115, 24, f"tokens (8, {T})", size=d.BIG)
    tied = "the same weights, transposed" if a.tie_embeddings else weights["output"]
    for y, name, note, gives in (
        (76, "tok_embeddings", weights["tok_embeddings"], "tok_embeddings"),
        (180, f"{a.n_layers} \u00d7 TransformerBlock", f"each {weights['layers.0']}", "layers.0"),
        (284, "norm", weights["norm"], "norm"),
        (388, "output", tied, ""),
    ):
        d.box(ax, 15, y, 200, 48, edge="blue" if gives == "layers.0" else "line")
        d.say(ax, 115, y + 17, name, size=d.BIG, family="monospace")
        d.say(ax, 115, y + 35, note, "soft")
        d.drop(ax, 115, y + 48, 56 if gives else 34, shape[gives])
    d.arrow(ax, (115, 38), (115, 74))
    d.say(ax, 115, 485, "logits", size=d.BIG)
    ax.plot((262, 215, 215, 262), (10, 180, 228, 490), color="line", linewidth=1)
    block(ax, a, shape)


def block(ax, a, shape):
    """A block: two branches that leave the residual stream and are added to it."""
    mono = {"family": "monospace", "size": d.SMALL}
    d.cell(ax, 262, 10, 558, 480, fc="back", ec="blue")
    d.arrow(ax, (292, 18), (292, 484), color="ink")
    d.note(ax, 304, 28, f"x {shape['layers.0']}")
    q, k, wide = (shape[f"layers.0.{w}"] for w in ("attention.wq", "attention.wk", "feed_forward.w1"))
    heads = f"q {q}: {a.n_heads} heads;  k and v {k}: {a.n_kv_heads} heads"
    for y, norm, last, size, idea in (
        (110, "attention_norm", "wo", heads, "each position looks at itself and those before it"),
        (335, "ffn_norm", "w2", f"w1 x and w3 x {wide}", "each position thinks for itself"),
    ):
        d.box(ax, 320, y - 17, 112, 34, norm, **mono)
        d.arrow(ax, (292, y), (318, y))
        d.box(ax, 758, y - 17, 46, 34, last, **mono)
        d.arrow(ax, (781, y + 17), (781, y + 110), (303, y + 110))
        d.junction(ax, 292, y + 110, "+")
        d.note(ax, 320, y + 74, size)
        d.say(ax, 320, y + 94, idea, ha="left")
    for start, y, name, *path in (
        (110, 70, "wq", (548, 70)),
        (110, 110, "wk", (548, 110)),
        (110, 150, "wv", (628, 150)),
        (335, 312, "w1", (548, 312)),
        (335, 358, "w3", (668, 358), (668, 348)),
    ):
        d.arrow(ax, (432, start), (450, start), (450, y), (468, y))
        d.box(ax, 470, y - 15, 50, 30, name, **mono)
        d.arrow(ax, (520, y), *path)
    d.box(ax, 550, 55, 56, 70, "RoPE", size=d.SMALL)
    d.arrow(ax, (606, 90), (628, 90))
    formula = f"softmax of\nq\u00b7k / \u221a{a.dim // a.n_heads},\ntimes v"
    d.box(ax, 630, 55, 106, 110, formula, "orange", d.SMALL)
    d.arrow(ax, (736, 110), (756, 110))
    d.box(ax, 550, 297, 56, 30, "silu", size=d.SMALL)
    d.arrow(ax, (606, 312), (668, 312), (668, 322))
    d.junction(ax, 668, 335, "\u00d7")
    d.arrow(ax, (680, 335), (756, 335))


def gqa():
    """Query heads and the key/value heads that they share: as many, as train.py has, one."""
    shape = from_train()
    H = shape["n_heads"]
    C = shape["dim"]
    L = shape["n_layers"]
    ax = d.sheet(215)
    labels = ("query heads", "key/value heads", "wk and wv, each block", "KV cache, float32")
    for y, text in zip((60, 135, 168, 190), labels):
        d.note(ax, 10, y, text)
    kinds = ((H, "multi-head"), (shape["n_kv_heads"], "grouped-query"), (1, "multi-query"))
    for left, (K, name) in zip((150, 385, 620), kinds):
        d.say(ax, left + 100, 22, name, size=d.BIG)
        for h in range(H):
            x = left + 25 * h + 12
            at = left + 200 * (h // (H // K) + 0.5) / K
            ax.plot((x, at), (70, 125), color="soft", linewidth=1)
            d.cell(ax, x - 9, 50, 18, 20, fc="fill", ec="blue")
            d.cell(ax, at - 9, 125, 18, 20, fc="orange", ec="orange")
        wk = Attention(ModelArgs(dim=C, n_heads=H, n_kv_heads=K)).wk.weight
        d.say(ax, left + 100, 168, f"{2 * wk.numel():,} parameters", "soft")
        d.say(ax, left + 100, 190, f"{L * 2 * len(wk) * 4:,} bytes per token", "soft")


def rope():
    """Three pairs of features, turned; and what becomes of the product of a query and a key."""
    D = 32  # numbers in a head of the quick start
    T = 256
    cos, sin = precompute_freqs_cis(D, T, ModelArgs().rope_theta)
    for left, pair in ((0.005, 0), (0.19, 4), (0.37, 8)):
        ax = d.axes(255, (left, 0.06, 0.18, 0.72), xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
        ax.axis("off")
        rate = math.atan2(sin[1, pair], cos[1, pair])
        d.say(ax, 0, 1.85, f"features {2 * pair} and {2 * pair + 1}:\n{rate:.3g} radian per token")
        x = torch.zeros(1, 8, 1, D)
        x[..., 2 * pair] = 1  # the same features at 8 positions
        turned, _ = apply_rotary_emb(x, x, cos[:8], sin[:8])
        turned = turned[0, :, 0, 2 * pair : 2 * pair + 2].tolist()
        turn = torch.linspace(0, 2 * math.pi, 100)
        ax.plot(turn.cos(), turn.sin(), color="line", linewidth=1)
        for t, (px, py) in enumerate(turned):
            ax.plot((0, px), (0, py), color="blue", alpha=1 - 0.09 * t)
            if rate > 0.1 or t in (0, 7):  # of a slow hand, the numbers would lie one over the other
                d.say(ax, 1.2 * px, 1.2 * py, t)
    ax = d.axes(255, (0.63, 0.18, 0.36, 0.63), xlabel="distance of query and key (tokens)")
    ax.set_title("turned query \u00b7 turned key", size=d.SMALL, loc="center", pad=14)
    x = torch.ones(1, T, 1, D) / math.sqrt(D)
    x = apply_rotary_emb(x, x, cos, sin)[0][0, :, 0]
    for at, color, marker, first in ((250, "soft", "-", 0), (60, "blue", "o", 0), (150, "orange", "x", 2)):
        products = (x[at - 60 : at + 1] @ x[at]).flip(0)  # with the keys 0, 1, ... 60 tokens before
        ax.plot(products, marker, color=color, markersize=5, markevery=(first, 4), label=f"query at {at}")
    ax.legend(loc="upper right", labelcolor="linecolor")


def loss():
    """The training loss of single steps, and the validation loss at each evaluation."""
    val = logged(log, "val_loss")
    train = logged(log, "loss")
    ax = d.chart("Loss of the quick start", "step", "loss (nats per token)")
    ax.plot(*zip(*train), color="blue", linewidth=1.2)
    ax.plot(*zip(*val), "o", color="orange", markersize=6)
    d.say(ax, 0.62, 0.86, "line: training, one step", "blue", transform=ax.transAxes, ha="left")
    d.say(ax, 0.62, 0.78, "dots: validation", "orange", transform=ax.transAxes, ha="left")
    for n, (step, value) in enumerate(val):
        text = f"{value:.2f}"
        if n in (0, len(val) - 1):
            text += f": as unsure as among\n{math.exp(value):,.{0 if n == 0 else 1}f} equally likely tokens"
        at = {"dx": 12, "ha": "left"} if n == 0 else {"dy": 26, "dx": 10, "ha": "right"}
        d.beside(ax, step, value, text, "orange", **at)
    ax.set_ylim(0)


def lr():
    """train.py's get_lr for its schedules, at the run's options; and what the run has logged."""
    scope = from_train()
    points = logged(log, "lr")
    scope.update(load_checkpoint(checkpoint)["config"])  # in place: they are get_lr's globals
    top = scope["learning_rate"]
    last = scope["max_iters"]
    chosen = scope["schedule"]
    ax = d.chart("The learning rate, by the schedules of train.py", "step", "learning rate")
    small = ax.inset_axes((0.13, 0.14, 0.27, 0.4), ylim=(0, top * 1.12))
    small.set_title("the beginning", size=d.SMALL, pad=4)
    for schedule, color, at in (("cosine", "blue", 0.35), ("wsd", "orange", 0.7)):
        scope["schedule"] = schedule
        values = [scope["get_lr"](step) for step in range(last + 1)]
        ax.plot(values, color=color)
        small.plot(values[: 3 * scope["warmup_iters"] + 1], color=color)
        if schedule == chosen:
            ax.plot(*zip(*points[:: max(1, len(points) // 12)]), "o", color=color, markersize=4)
        text = f"{schedule}{'; dots: the log of the run' * (schedule == chosen)}"
        d.beside(ax, last * at, values[int(last * at)], text, color, dx=10, dy=10, ha="left")


def muon():
    """How strong the directions of an averaged gradient are, and those of the step that Muon makes of it."""
    saved = load_checkpoint(checkpoint)
    shape = saved["model"]["layers.0.feed_forward.w1.weight"].shape
    averages = [state.get("momentum_buffer") for state in saved["optimizer"]["state"].values()]
    found = [x for x in averages if x is not None and x.shape == shape]
    if not found:
        raise InputError(f"{checkpoint} is not of a training with --optimizer=muon")
    before, after = (torch.linalg.svdvals(x) for x in (found[0], orthogonalize(found[0][None])[0]))
    ax = d.chart(
        f"The {len(before)} directions of layers.0.feed_forward.w1, the strongest first",
        "direction", "strength (singular value)",
    )  # fmt: skip
    for values, color, text in (
        (before / before[0], "blue", "the averaged gradient; its strongest is drawn as 1"),
        (after, "orange", "what Muon makes of it"),
    ):
        ax.plot(range(1, len(values) + 1), values, "o-", color=color, markersize=4)
        middle = len(values) // 4
        d.beside(ax, middle, float(values[middle]), text, color, dx=10, dy=20, ha="left")
    ax.set_ylim(0)


def cache():
    """What a token costs at each position of the context, measured."""
    runs = 20
    threads = torch.get_num_threads()
    title = f"What a token costs: CPU, {threads} thread{'s' * (threads > 1)}, the best of {runs} runs"
    ax = d.chart(title, "position in the text", "milliseconds per token")
    lines = (("with the KV cache", "blue", 0.97), ("without: all positions again", "orange", 0.6))
    for times, (name, color, part) in zip(seconds_a_token(checkpoint, runs), lines):
        times = [1000 * s for s in times]
        ax.plot(range(1, len(times) + 1), times, color=color)
        at = int(len(times) * part)
        total = f"{name}; {len(times)} tokens: {sum(times) / 1000:.2f} s"
        d.beside(ax, at, max(times[max(0, at - 60) : at + 5]), total, color, dy=18, ha="right")
    ax.set(xlim=(0, len(times) + 4), ylim=(0, None))


def head():
    """Where the copying head looks from each position, and how sure the model is of what comes next."""
    ids, copies, (layer, h), weights, probs = copying_head(checkpoint, PROMPT, NAME)
    tok = trained(checkpoint)[1]
    T = len(ids) - 1
    names = [tok.piece(i).replace("<0x0A>", "\\n") for i in ids]
    unit = min(24, 520 / T)
    left = 78
    top = 74
    x = left + unit * T + 100
    upright = {"rotation": 90, "rotation_mode": "anchor"}
    ax = d.sheet(top + unit * T + 14)
    for i in range(T):
        y = top + unit * i
        fill, color = ("orange", "orange") if i in dict(copies) else ("line", "soft")
        d.say(ax, left - 8, y + unit / 2, names[i], ha="right")
        d.say(ax, left + unit * (i + 0.5), top - 8, names[i], ha="left", **upright)
        for j in range(i + 1):
            if weights[i, j] > 0.02:
                d.cell(ax, left + unit * j, y, unit, unit, fc="blue", alpha=float(weights[i, j]), ec="none")
        d.cell(ax, left, y, unit * (i + 1), unit, fc="none", ec="line", linewidth=0.6)
        d.say(ax, x - 8, y + unit / 2, names[i + 1], ha="right")
        d.cell(ax, x, y + 5, 80 * float(probs[i]), unit - 10, fc=fill, ec="none")
        d.say(ax, x + 6 + 80 * float(probs[i]), y + unit / 2, f"{probs[i]:.1%}", color, ha="left")
    for i, j in copies:
        d.cell(ax, left + unit * j, top + unit * i, unit, unit, fc="none", ec="orange", linewidth=2)
    for n, text in enumerate((f"layers.{layer}, head {h}: a row for each", "position, and where it looks")):
        d.say(ax, x - 100, top + 12 + 18 * n, text, ha="right")
    d.say(ax, x - 60, top - 16, "what comes next, and its probability", ha="left")


def mask():
    """A conversation as training sees it, a line for each turn, a cell for each id."""
    tok = Tokenizer(tokenizer)
    ids, learned = tok.encode_chat(convert_message([{"from": who, "value": text} for who, text in CHAT]))
    texts = [tok.tk.decode([i], skip_special_tokens=False).replace("\n", "\u21b5") for i in ids]
    y = -46
    ax = d.sheet(34 + 56 * texts.count("<|im_start|>"))
    for text, m in zip(texts, learned):
        if text == "<|im_start|>":
            x = 10
            y += 56
        width = 14 + sum(12 if unicodedata.east_asian_width(letter) in "WF" else 7 for letter in text)
        d.cell(ax, x, y, width, 44, fc="orange" if m else "fill", alpha=0.25 if m else 1, ec="none")
        d.cell(ax, x, y, width, 44, fc="none", ec="orange" if m else "line")
        d.say(ax, x + width / 2, y + 14, text)
        d.say(ax, x + width / 2, y + 33, m, "orange" if m else "soft")
        x += width + 4
    d.note(ax, 10, y + 60, "1: to be learned, an answer and the token that ends it;  0: given")


def main():
    first = (shapes, learning, valley, look_back)
    drawn = {f.__name__: f for f in (*first, data, decoder, gqa, rope, loss, lr, muon, cache, head, mask)}
    for name in only.split(",") if only else drawn:
        if name not in drawn:
            raise InputError(f"no picture {name!r}: there are {', '.join(drawn)}")
        try:
            drawn[name]()
            d.save(os.path.join(out, f"{name}.svg"))
            print(f"wrote {os.path.join(out, name)}.svg")
        except (ValueError, OSError) as error:
            print(f"no picture {name}: {error}")


if __name__ == "__main__":
    override(globals())
    main()
