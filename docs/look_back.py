"""
Where the trained model of minimal.py looks: a row for each position of a text, a sign for each weight of its
attention, the darker the larger. Then what the model writes after that text.

    python docs/look_back.py
    python docs/look_back.py "Tim has a white hat. "
"""

import math
import sys

import torch
from minimal import generate, main, max_seq_len

STORY = "Mia has a white ball. She likes the ball."


@torch.no_grad()
def attention_weights(model, ids):
    """(T, T): the weights of minimal.py's Attention, which keeps none of them. ids (T)."""
    x = model.attention_norm(model.tok_embeddings(ids) + model.pos_embeddings.weight[: len(ids)])  # (T, C)
    scores = model.attention.wq(x) @ model.attention.wk(x).T / math.sqrt(x.shape[1])  # (T, T)
    later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -math.inf).softmax(-1)


def look_back(text):
    model, vocabulary, _ = main()
    if unknown := set(text) - set(vocabulary):
        sys.exit(f"look_back.py: no story has {min(unknown)!r}: the model knows {''.join(vocabulary[1:])!r}")
    ids = torch.tensor([vocabulary.index(c) for c in "\n" + text])
    print(" " * 6 + text)
    for i, row in zip(ids, attention_weights(model, ids)):
        signs = "".join(" .:-=+*#%@"[int(9.99 * weight)] for weight in row)
        print(f"{vocabulary[i]!r:5}{signs}")
    story = generate(model, ids, end=ids[0])
    print("it continues:", repr("".join(vocabulary[i] for i in story[len(ids) :])))


if __name__ == "__main__":
    text = sys.argv[1] if len(sys.argv) > 1 else STORY
    if len(text) >= max_seq_len:
        sys.exit(f"look_back.py: a text of {len(text)} characters: the model sees at most {max_seq_len - 1}")
    look_back(text)
