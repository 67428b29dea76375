"""
Attention in two blocks, for training on a CPU with torch.compile: train.py takes it where it compiles there.

Causal attention needs half of its scores: no query looks at a later key. PyTorch's kernel for CPUs leaves
the other half out, too, but torch.compile cannot see into it. Written out as products of matrices, attention
becomes a part of what torch.compile turns into a program. The queries are cut into two halves; the first half
is compared with the first half of the keys, so a quarter of the scores is never computed. On 2 cores with
bfloat16 arithmetic the tutorial's model trains 1.24 times as fast, one of dim 64 1.18 times
(docs/experiments.md). More blocks gain little, and take longer to compile.
"""

import math

import torch

from model import attend


def use_causal_blocks(model):
    """Let a model that torch.compile will compile for a CPU attend in blocks."""
    for layer in model.layers:
        layer.attention.attend = attend_in_blocks


def attend_in_blocks(q, k, v, mask=None, dropout=0.0):
    """
    model.attend, which does the work where there is a mask or dropout, or where nothing is being compiled.
    q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D).
    """
    if mask is not None or dropout or not torch.compiler.is_compiling():
        return attend(q, k, v, mask, dropout)
    T = q.shape[2]
    groups = q.shape[1] // k.shape[1]
    q = q.unflatten(1, (-1, groups)) / math.sqrt(q.shape[3])  # (B, K, groups, T, D)
    outputs = []
    for start, end in ((0, T // 2), (T // 2, T)):
        queries = q[:, :, :, start:end].flatten(2, 3)  # (B, K, groups * t, D): no key is copied for its group
        scores = (queries @ k[:, :, :end].mT).unflatten(2, (groups, -1)).float()  # (B, K, groups, t, end)
        later = torch.ones(end - start, end, dtype=torch.bool, device=q.device).triu(start + 1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1).type_as(v)
        outputs.append((weights.flatten(2, 3) @ v[:, :, :end]).unflatten(2, (groups, -1)))
    return torch.cat(outputs, dim=3).flatten(1, 2)
