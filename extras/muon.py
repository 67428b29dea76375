"""
Muon: momentum, then the nearest orthogonal matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A gradient matrix is usually dominated by a few directions, and so is AdamW's step. Muon keeps the
directions and makes all of them equally long: of U S V^T, the momentum, it takes U V^T. Each step costs
some matrix products and saves many steps.

torch.optim.Muon is the same method; it computes in bfloat16, one matrix at a time. On a CPU without
bfloat16 arithmetic that takes 0.7 s a step (2 cores with AVX2, torch 2.13, 28 matrices of up to 128 x
352); in float32, with the matrices of one shape stacked, it takes 0.04 s.
"""

import torch


class Muon(torch.optim.Optimizer):
    """
    For weight matrices inside the model only: embeddings and gains are AdamW's. The step is scaled to the
    root mean square that AdamW's has (Liu et al. 2025, arXiv:2502.16982), so that one learning rate and
    weight decay serve both.
    """

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for (rows, columns), ps in shapes.items():
                updates = []
                for p in ps:
                    average = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                    average.lerp_(p.grad, 1 - momentum)
                    updates.append(p.grad.lerp(average, momentum))  # Nesterov: look one step ahead
                scale = 0.2 * max(rows, columns) ** 0.5  # an orthogonal matrix's entries: 1 / sqrt(its side)
                for p, update in zip(ps, orthogonalize(torch.stack(updates))):
                    p.mul_(1 - lr * group["weight_decay"]).add_(update.to(p.dtype), alpha=-lr * scale)


def orthogonalize(x, steps=5):
    """
    (N, rows, columns) -> the same shape, every singular value moved to between about 0.7 and 1.2. Five
    rounds of the polynomial a s + b s^3 + c s^5, applied to all singular values at once by matrix
    products alone (Newton-Schulz); its coefficients are Jordan's, chosen for speed from 0 rather than for
    an exact 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.bfloat16() if x.is_cuda else x.float()
    wide = x if x.shape[1] <= x.shape[2] else x.mT  # the smaller side squared is the cheaper product
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.mT
