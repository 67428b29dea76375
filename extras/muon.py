"""
Muon: momentum, made nearly orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    python train.py --optimizer=muon

A gradient matrix is usually dominated by a few directions, and so is the step of AdamW. Muon keeps the
directions and makes them about equally long: of the momentum U S V^T it takes about U V^T. That costs some
matrix products in each step, and the same loss needs fewer steps (docs/experiments.md).

torch.optim.Muon is the same method. It computes in bfloat16, one matrix at a time: on a CPU without bfloat16
arithmetic 1 to 2 s a step (2 cores with AVX2, torch 2.13, 28 matrices of up to 128 x 352). Here matrices of
one shape are stacked, and on a CPU computed in float32: 0.04 s.
"""

import torch

from devices import compile_error, find_dtype


def configure_muon(model, weight_decay, learning_rate, betas, compile="auto"):
    """One optimizer: Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    in_blocks = {id(p) for p in matrices}
    groups = model.configure_optimizers(weight_decay, learning_rate, betas).param_groups
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in in_blocks]
    groups.append({"params": matrices, "weight_decay": weight_decay, "muon": True})
    optimizer = MuonAdamW(groups, lr=learning_rate, betas=betas, fused=True)
    device = str(matrices[0].device)
    if device.startswith("cuda"):
        optimizer.dtype = getattr(torch, find_dtype("bfloat16", device))
        if compile != "false" and not compile_error(device):
            # Eager, it is about 25 small kernels for each shape; compiled, fewer launches do the same.
            optimizer.orthogonalize = torch.compile(orthogonalize)
    return optimizer


def orthogonalize(x, dtype=torch.float32, steps=5):
    """
    (N, rows, columns) -> the same shape; singular values above about 1 % of the matrix's norm become 0.7 to
    1.2, smaller ones grow up to 485 times. Five rounds of the polynomial a s + b s^3 + c s^5, applied to all
    singular values at once by matrix products (Newton-Schulz). Jordan chose the coefficients for speed from
    small values rather than for an exact 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x if x.shape[1] <= x.shape[2] else x.mT  # the square of the smaller side is the cheaper product
    wide = wide.float() / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    wide = wide.to(dtype)  # only now: small gradients are 0 in float16
    for _ in range(steps):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.mT


class MuonAdamW(torch.optim.AdamW):
    """
    AdamW, but Muon for groups with "muon". Muon's step is scaled to the root mean square that AdamW's has
    (Liu et al. 2025, arXiv:2502.16982): one learning rate and weight decay serve both. As in torch's fused
    optimizers, a step changes nothing where the tensor found_inf is 1: the device decides that (on MPS, where
    torch's do not know it, train.py does).
    """

    momentum = 0.95
    dtype = torch.float32  # of the products
    found_inf = torch.zeros(())
    orthogonalize = staticmethod(orthogonalize)

    @torch.no_grad()
    def step(self):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        super().step()
        self.param_groups = groups
        for group in groups:
            if group.get("muon"):
                self.step_muon(group)

    def step_muon(self, group):
        skip = self.found_inf > 0
        shapes = {}
        for p in group["params"]:
            if p.grad is not None:
                if not self.state[p]:  # AdamW, which loads the state, expects a "step" in each
                    self.state[p] = {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(p.grad)}
                shapes.setdefault(p.shape, []).append(p)
        for (rows, columns), ps in shapes.items():
            # All matrices of a shape as one tensor (N, rows, columns): a kernel for all takes one launch.
            averages = [self.state[p]["momentum_buffer"] for p in ps]
            average = torch.stack(averages)
            grad = torch.where(skip, average, torch.stack([p.grad for p in ps]))  # the average stays as it is
            average.lerp_(grad, 1 - self.momentum)
            torch._foreach_copy_(averages, average.unbind())
            update = grad.lerp(average, self.momentum)  # Nesterov: look one step ahead
            scale = 0.2 * max(rows, columns) ** 0.5  # entries of U V^T: 1 / sqrt(its longer side)
            old = torch.stack(ps)
            new = old.mul(1 - group["lr"] * group["weight_decay"])
            new.add_(self.orthogonalize(update, self.dtype).to(old.dtype), alpha=-group["lr"] * scale)
            torch._foreach_copy_(ps, torch.where(skip, old, new).unbind())
