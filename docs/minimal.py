"""
A whole language model in one file, as small as it can be. Each chapter of the course takes one part of it,
and says what the real file for that part adds.

    python docs/minimal.py      needs torch and nothing else; about a minute on a laptop's CPU

It makes a text, turns it into numbers, trains a transformer of one block on them, and lets it write. Names
are model.py's: B is the batch, T the time (positions), C the width (dim), V the size of the vocabulary.
"""

import math
import random

import torch
import torch.nn as nn
import torch.nn.functional as F

dim = 64  # width: each position is a vector of so many numbers
max_seq_len = 48  # characters that the model sees at once; a story has at most 43
batch_size = 32  # pieces of text in a step
max_iters = 1500  # steps
learning_rate = 3e-3

PRONOUN = {"Mia": "She", "Lily": "She", "Anna": "She", "Tom": "He", "Ben": "He", "Fred": "He"}
COLOURS = ("red", "blue", "green", "white")
THINGS = ("kite", "ball", "doll", "cup", "hat", "book")


# 1. The text, and batches of it
def make_story():
    """'Mia has a red kite. She likes the kite.' and a line end, which separates the stories."""
    name = random.choice(list(PRONOUN))
    thing = random.choice(THINGS)
    return f"{name} has a {random.choice(COLOURS)} {thing}. {PRONOUN[name]} likes the {thing}.\n"


def get_batch(ids, starts):
    """x (B, T): pieces that begin before a story. y (B, T): the same, one character later: the targets."""
    chosen = starts[torch.randint(len(starts), (batch_size, 1))]  # (B, 1)
    pieces = ids[chosen + torch.arange(max_seq_len + 1)]  # (B, T + 1)
    return pieces[:, :-1], pieces[:, 1:]


# 2. The model
class Attention(nn.Module):
    """Each position looks back for what its query asks for. (B, T, C) -> (B, T, C)."""

    def __init__(self):
        super().__init__()
        self.wq = nn.Linear(dim, dim, bias=False)  # the query: what a position looks for
        self.wk = nn.Linear(dim, dim, bias=False)  # the key: what it offers to be found by
        self.wv = nn.Linear(dim, dim, bias=False)  # the value: what it hands over when it is found
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        T = x.shape[1]
        scores = self.wq(x) @ self.wk(x).transpose(1, 2) / math.sqrt(dim)  # (B, T, T): query times key
        later = torch.ones(T, T, dtype=torch.bool).triu(1)  # True where a key comes after the query
        weights = scores.masked_fill(later, -math.inf).softmax(-1)  # each row adds up to 1
        return self.wo(weights @ self.wv(x))


class Transformer(nn.Module):
    """One block. Tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, vocab_size):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.pos_embeddings = nn.Embedding(max_seq_len, dim)
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = Attention()
        self.ffn_norm = nn.RMSNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm = nn.RMSNorm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens) + self.pos_embeddings.weight[: tokens.shape[1]]  # (B, T, C)
        x = x + self.attention(self.attention_norm(x))  # positions tell each other what they know
        x = x + self.feed_forward(self.ffn_norm(x))  # each position works on what it has
        return self.output(self.norm(x))  # (B, T, V): a score for each character that may come next


# 3. Training: predict, measure how wrong it was, move each parameter a little
def train(model, ids, starts):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for step in range(max_iters):
        x, y = get_batch(ids, starts)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()  # the gradient: for each parameter, how the loss changes with it
        optimizer.step()  # move each parameter against its gradient
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 250 == 0 or step == max_iters - 1:
            print(f"step {step}: loss {loss.item():.3f}")
    return losses


# 4. Writing: one character at a time, up to the end of the story
@torch.no_grad()
def generate(model, ids, end):
    while len(ids) < max_seq_len:
        logits = model(ids[None])[0, -1]  # (V): the scores of the next character
        new = torch.multinomial(logits.softmax(-1), 1)  # draw one, each with its probability
        ids = torch.cat((ids, new))
        if new == end:
            break
    return ids


def main():
    random.seed(1)
    torch.manual_seed(1)
    text = "\n" + "".join(make_story() for _ in range(5000))
    vocabulary = sorted(set(text))
    ids = torch.tensor([vocabulary.index(c) for c in text])
    starts = (ids[:-max_seq_len] == ids[0]).nonzero()[:, 0]  # where stories begin: the line ends before them
    model = Transformer(len(vocabulary))
    print(f"{len(vocabulary)} characters; {sum(p.numel() for p in model.parameters()):,} parameters")
    losses = train(model, ids, starts)
    for _ in range(8):
        story = generate(model, ids[:1], end=ids[0])
        print("".join(vocabulary[i] for i in story).strip())
    return model, vocabulary, losses


if __name__ == "__main__":
    main()
