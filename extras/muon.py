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

from devices import compile_error


def configure_muon(model, weight_decay, learning_rate, betas, compile="auto"):
    """[AdamW for the embedding and the norms, Muon for the matrices of the blocks]."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    adamw = model.configure_optimizers(weight_decay, learning_rate, betas)
    in_blocks = {id(p) for p in matrices}
    for group in adamw.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in in_blocks]
    muon = Muon(matrices, learning_rate, weight_decay)
    device = str(matrices[0].device)
    if device.startswith("cuda") and compile != "false" and not compile_error(device):
        # Eager, it is 25 small kernels for each shape: they take longer to launch than to run.
        muon.orthogonalize = torch.compile(orthogonalize)
    return [adamw, muon]


class Muon(torch.optim.Optimizer):
    """
    For the weight matrices inside the model only. The step is scaled to the root mean square that AdamW's
    has (Liu et al. 2025, arXiv:2502.16982), so that one learning rate and weight decay serve both. As in
    torch's fused optimizers, a step changes nothing where the tensor found_inf is 1: the device decides that,
    and nobody waits for it.
    """

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.found_inf = torch.zeros(())
        self.orthogonalize = orthogonalize

    @torch.no_grad()
    def step(self):
        skip = self.found_inf > 0
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
                    grad = torch.where(skip, average, p.grad)  # the average stays as it is
                    average.lerp_(grad, 1 - momentum)
                    updates.append(grad.lerp(average, momentum))  # Nesterov: look one step ahead
                scale = 0.2 * max(rows, columns) ** 0.5  # entries of U V^T: 1 / sqrt(its longer side)
                for p, update in zip(ps, self.orthogonalize(torch.stack(updates))):
                    new = p.mul(1 - lr * group["weight_decay"]).add_(update.to(p.dtype), alpha=-lr * scale)
                    p.copy_(torch.where(skip, p, new))


def orthogonalize(x, steps=5):
    """
    (N, rows, columns) -> the same shape; singular values above about 1 % of the matrix's norm become 0.7 to
    1.2, smaller ones grow up to 485 times. Five rounds of the polynomial a s + b s^3 + c s^5, applied to all
    singular values at once by matrix products (Newton-Schulz). Jordan chose the coefficients for speed from
    small values rather than for an exact 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.bfloat16() if x.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else x.float()
    wide = x if x.shape[1] <= x.shape[2] else x.mT  # the square of the smaller side is the cheaper product
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.mT
