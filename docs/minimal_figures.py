"""
The pictures of the first four chapters: what docs/minimal.py computes, and how it learns.

Reads  docs/minimal.py, which it trains (half a minute)
Writes nothing: figures.py saves what is drawn here
"""

import functools
import math

import drawing as d
import minimal
import torch
from look_back import STORY, attention_weights
from observe import outputs_of

STEPS = (10, 25, 50, 100, 200, 300)  # at which the model writes a story for the picture


@functools.cache
def trained_minimal():
    """
    docs/minimal.py's own run: its model, vocabulary and losses, and {step: the story that it wrote then}. The
    random numbers of the stories are taken aside, so that the run is the one that anybody gets.
    """
    drawn = {}
    stories = {}
    train = minimal.train
    get_batch = minimal.get_batch

    def train_and_watch(model, ids, starts):
        def watched_batch(ids, starts):
            step = drawn["batches"] = drawn.get("batches", -1) + 1
            if step in STEPS:
                with torch.random.fork_rng():
                    torch.manual_seed(1)
                    stories[step] = minimal.generate(model, ids[:1], end=ids[0])
            return get_batch(ids, starts)

        minimal.get_batch = watched_batch
        return train(model, ids, starts)

    minimal.train = train_and_watch
    try:
        model, vocabulary, losses = minimal.main()
    finally:
        minimal.train = train
        minimal.get_batch = get_batch
    texts = {step: "".join(vocabulary[i] for i in ids).strip() for step, ids in stories.items()}
    return model, vocabulary, losses, texts


def stack(ax, x, y, shape, name, color="blue"):
    """A tensor (B, rows, columns) as sheets that lie on each other, a pixel for each number."""
    *_, rows, columns = shape if len(shape) == 3 else (*shape, 1)
    wide = max(columns, 6)
    for n in (3, 2, 1, 0) if len(shape) == 3 or name in ("x", "y") else (0,):
        d.cell(ax, x + 4 * n, y - 4 * n, wide, rows, fc="fill", ec=color)
    d.say(ax, x + wide / 2 + 6, y - 26, name, size=d.BIG, family="monospace")
    d.say(ax, x + wide / 2 + 6, y + rows + 14, f"({', '.join(map(str, shape))})", "soft")


def step_to(ax, x0, x1, y, text):
    """An arrow from x0 to x1, with what happens there above it."""
    d.arrow(ax, (x0, y), (x1, y))
    for n, line in enumerate(reversed(text.split("\n"))):
        d.say(ax, (x0 + x1) / 2, y - 12 - 15 * n, line, family="monospace")


def shapes():
    """The shape of everything that minimal.py computes for one batch."""
    B = minimal.batch_size
    T = minimal.max_seq_len
    C = minimal.dim
    model = minimal.Transformer(vocab_size=31)
    names = ("tok_embeddings", "attention.wq", "attention", "feed_forward.1", "feed_forward", "norm")
    seen = outputs_of(model, torch.zeros(B, T, dtype=torch.long), names)
    shape = {name: tuple(x.shape) for name, x in seen.items()}
    ax = d.sheet(600)
    d.note(ax, 10, 75, "1. Into vectors")
    d.note(ax, 10, 215, "2. Attention")
    d.note(ax, 10, 375, "3. Feed-forward")
    d.note(ax, 10, 515, "4. Loss")
    stack(ax, 140, 50, (B, T), "x")
    step_to(ax, 175, 375, 74, "tok_embeddings(x)\n+ pos_embeddings.weight")
    stack(ax, 390, 50, shape["tok_embeddings"], "x")
    d.note(ax, 560, 54, f"{B} sheets: the pieces")
    d.note(ax, 560, 74, f"{T} rows: the positions")
    d.note(ax, 560, 94, f"{C} columns: the vector")

    stack(ax, 140, 195, shape["attention.wq"], "wq(x)", "orange")
    d.say(ax, 240, 215, "@", size=d.BIG)
    stack(ax, 270, 187, (B, C, T), "wk(x).transpose(1, 2)", "orange")
    step_to(ax, 350, 400, 215, "/ 8")
    stack(ax, 415, 195, (B, T, T), "scores")
    step_to(ax, 485, 565, 215, "mask,\nsoftmax")
    stack(ax, 580, 195, (B, T, T), "weights")
    d.say(ax, 660, 215, "@", size=d.BIG)
    stack(ax, 690, 195, shape["attention.wq"], "wv(x)", "orange")
    d.note(ax, 140, 290, "then wo; the result has the shape of x, and is added to it")

    stack(ax, 140, 350, shape["attention"], "x")
    step_to(ax, 230, 300, 374, "Linear,\nReLU")
    stack(ax, 320, 350, shape["feed_forward.1"], "wide")
    step_to(ax, 600, 660, 374, "Linear")
    stack(ax, 680, 350, shape["feed_forward"], "+ x")

    stack(ax, 140, 490, shape["norm"], "x")
    step_to(ax, 230, 300, 514, "norm,\noutput")
    stack(ax, 320, 490, shape[""], "logits")
    step_to(ax, 375, 470, 514, "flatten(0, 1)")
    d.cell(ax, 490, 475, 31, 80, fc="fill", ec="blue")
    d.say(ax, 505, 570, f"({B * T}, 31)", "soft")
    d.say(ax, 545, 515, "and", "soft")
    d.cell(ax, 570, 475, 6, 80, fc="fill", ec="blue")
    d.say(ax, 573, 463, "y", size=d.BIG, family="monospace")
    d.say(ax, 573, 570, f"({B * T})", "soft")
    step_to(ax, 600, 710, 514, "cross_entropy")
    d.say(ax, 755, 514, "loss: a number", size=d.BIG)


def learning():
    """The loss of minimal.py, and what it wrote on the way."""
    _, _, losses, stories = trained_minimal()
    title = "What docs/minimal.py has learned at each step"
    ax = d.chart(title, "step", "loss (nats per character)", height=380)
    ax.plot(losses, color="blue")
    floor = (3 * math.log(6) + math.log(4) + math.log(4) / 72) / minimal.max_seq_len
    ax.axhline(floor, color="orange", linewidth=1, linestyle="--")
    d.beside(ax, 1, floor, f"{floor:.3f}: what no model can know", "orange", dx=6, dy=-12, ha="left")
    for n, (step, story) in enumerate(stories.items()):
        y = 3.5 - 0.48 * n
        ax.plot((step, step), (losses[step], y), color="line", linewidth=0.8)
        ax.plot(step, losses[step], "o", color="blue", markersize=5)
        d.beside(ax, step, y, f"{step}:  {story}".replace("  ", "\u00a0\u00a0"), "ink", dx=5, ha="left")
    ax.set(xscale="log", xlim=(1, 2.5e4), ylim=(-0.25, 3.8))
    ax.set_xticks((1, 10, 100, 1000), labels=("1", "10", "100", "1000"))
    ax.minorticks_off()


def valley():
    """One parameter w, where A comes in three cases of four: the mean loss, and some steps from w = -3."""

    def mean_loss(w):
        return 0.75 * math.log(1 + math.exp(-w)) + 0.25 * math.log(1 + math.exp(w))

    for left, lr, steps in ((0.075, 2, 10), (0.575, 14, 5)):
        ax = d.axes(290, (left, 0.17, 0.41, 0.7), xlabel="w", ylabel="loss")
        ax.set(title=f"learning rate {lr}", xlim=(-3.6, 7.4), ylim=(0.3, 2.5))
        ws = [-3.0]
        for _ in range(steps):
            probability = 1 / (1 + math.exp(-ws[-1]))
            ws.append(ws[-1] - lr * (probability - 0.75))
        line = torch.linspace(-3.6, 7.4, 300).tolist()
        ax.plot(line, [mean_loss(w) for w in line], color="soft")
        for a, b in zip(ws, ws[1:]):
            way = {"arrowstyle": "->", "color": "orange", "alpha": 0.7}
            ax.annotate("", (b, mean_loss(b)), (a, mean_loss(a)), arrowprops=way)
        for n, w in enumerate(ws):
            ax.plot(w, mean_loss(w), "o", color="blue", markersize=6, alpha=1 - 0.07 * n)
            if n < 4:
                d.beside(ax, w, mean_loss(w), n, "ink", dx=4, dy=13)
        ax.plot((math.log(3), math.log(3)), (0.3, mean_loss(math.log(3))), ":", color="soft")
        d.beside(ax, math.log(3), 0.38, "the best w: 1.10, loss 0.56", "soft", dx=8, ha="left")


def look_back():
    """Where each position of a story looks, in minimal.py's trained model, and what it expects next."""
    model, vocabulary, _, _ = trained_minimal()
    story = "\n" + STORY
    ids = torch.tensor([vocabulary.index(c) for c in story])
    T = len(ids)
    weights = attention_weights(model, ids)
    probs = outputs_of(model, ids[None], ())[""][0].softmax(-1)
    letters = [repr(c)[1:-1].replace(" ", "\u2423") for c in story]
    she = story.index(" She")  # where the name is needed
    it = story.rindex(" ball")  # where the thing is
    unit = 14
    left = 60
    top = 46
    ax = d.sheet(top + unit * T + 12)
    for i in range(T):
        y = top + unit * (i + 0.5)
        color = "orange" if i in (she, it, it + 1) else "ink"
        d.say(ax, left - 10, y, letters[i], color, family="monospace")
        d.say(ax, left + unit * (i + 0.5), top - 10, letters[i], family="monospace")
        for j in range(i + 1):
            if weights[i, j] > 0.02:
                ink = {"fc": "blue", "alpha": float(weights[i, j]), "ec": "none"}
                d.cell(ax, left + unit * j, top + unit * i, unit, unit, **ink)
        d.cell(ax, left, top + unit * i, unit * (i + 1), unit, fc="none", ec="line", linewidth=0.5)
    for i, columns, text in (
        (she, (2,), "She or He?"),
        (it, (17, 19, 20), "which thing?"),
        (it + 1, (19, 20), "ball or book?"),
    ):
        for j in columns:
            d.cell(ax, left + unit * j, top + unit * i, unit, unit, fc="none", ec="orange", linewidth=1.5)
        p, best = probs[i].max(0)
        shown = f"{text} {vocabulary[best]}, {p:.1%}"
        d.say(ax, left + unit * (i + 1) + 8, top + unit * (i + 0.5), shown, "orange", ha="left")
