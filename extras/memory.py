"""
Will it fit? The memory of a training step by formula, eager and compiled.

    python -m extras.memory --batch_size=128                     with train.py's options of shape and batch
    python -m extras.memory --optimizer=muon --device=cuda

gradient_accumulation_steps does not change it: half the batch_size with twice as many needs about half.
"""

import math

import torch

from configurator import InputError, override
from model import ModelArgs, Transformer

dim = 288  # width
n_layers = 8  # blocks
n_heads = 8  # query heads
n_kv_heads = 4  # key/value heads
multiple_of = 32  # the feed-forward layer's width is rounded up to a multiple of this
vocab_size = 4096  # ids
max_seq_len = 256  # tokens in a sequence
batch_size = 8  # sequences in a micro-batch
dtype = "bfloat16"  # float32 | bfloat16 | float16: of the matrix products
optimizer = "adamw"  # adamw | muon: what keeps numbers for each parameter
device = "cuda"  # cuda | mps | cpu: they keep different things of attention


def memory(args: ModelArgs, batch_size, dtype="bfloat16", optimizer="adamw", device_type="cuda"):
    """
    {part: (bytes of eager training, bytes of compiled training)} of one process of train.py without dropout.

    Letters as in model.py; N = B T is the tokens of a micro-batch, F = hidden_dim, and e the bytes of a
    number in `dtype`: 2, or 4 for float32.

    Parameters and their gradients are float32: 4 bytes each. AdamW keeps two float32 numbers per parameter,
    Muon one for each parameter of the matrices in the blocks, and AdamW two for the rest. Autocast keeps a
    copy of each matrix in `dtype` until the backward pass has used it: e bytes per parameter.

    Activations are what the forward pass keeps for the backward pass. Bytes per token and block, eager:

        8 C        the residual stream before each of the two norms, float32
        8 C        the same, normalised, before it is multiplied by the norm's weight
        5 e C      the norms' results as inputs of wq, wk, wv, w1, w3: autocast makes a copy for each
                   (8 C in float32, where wq, wk, wv share one, and w1, w3 the other)
        4 e C      queries, keys, values, and what attention returns, the input of wo. On CUDA keys and
                   values are repeated for every query head; on a CPU they have K of H heads. CUDA's flash
                   attention pads a head to a multiple of 8 numbers (then wo's input is a copy without them)
        4 e F      w1 x, silu(w1 x), w3 x, and their product, the input of w2

    Compiled, the backward pass computes again what is cheap: the normalised stream, the norms' results but
    for one copy each (2 e C), the product in the feed-forward layer (3 e F).

    The last norm and the input of the output projection: 8 C + e C, compiled 4 C + e C.

    Logits, eager: the softmax, its gradient and that of the logits stand side by side in float32 at the
    beginning of the backward pass, 12 V bytes per token. Compiled: the logits and their gradient in `dtype`,
    2 e V. This is the moment with the most memory. Gradients are there by then if
    gradient_accumulation_steps is above 1; the sum counts them always.
    """
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    tokens = batch_size * args.max_seq_len
    with torch.device("meta"):  # shapes without memory
        model = Transformer(args)
    num_params = model.num_params()
    in_blocks = sum(p.numel() for p in model.layers.parameters() if p.dim() == 2)
    multiplied = in_blocks + args.vocab_size * args.dim
    states = 8 * num_params - (4 * in_blocks if optimizer == "muon" else 0)
    copies = size * multiplied if size < 4 else 0
    eager, compiled = activations_per_token(args, size, device_type)
    logits = args.vocab_size * tokens
    return {
        "parameters": (4 * num_params, 4 * num_params),
        "gradients": (4 * num_params, 4 * num_params),
        f"optimizer ({optimizer})": (states, states),
        f"copies of the weights in {dtype}": (copies, copies),
        "activations": (eager * tokens, compiled * tokens),
        "logits": (12 * logits, 2 * size * logits),
    }


def activations_per_token(args, size, device_type):
    """(eager, compiled): bytes that the forward pass keeps per token, logits aside; see `memory`."""
    head_dim = args.dim // args.n_heads
    kv_heads = args.n_kv_heads if device_type == "cpu" else args.n_heads
    padded = math.ceil(head_dim / 8) * 8 if device_type == "cuda" and size < 4 else head_dim
    attention = size * padded * 2 * (args.n_heads + kv_heads)
    unpadded = size * args.dim if padded > head_dim else 0
    norm_results = 5 * size * args.dim if size < 4 else 8 * args.dim
    eager = 16 * args.dim + norm_results + attention + unpadded + 4 * size * args.hidden_dim
    compiled = 8 * args.dim + 2 * size * args.dim + attention + 3 * size * args.hidden_dim
    last_eager = 8 * args.dim + size * args.dim
    last_compiled = 4 * args.dim + size * args.dim
    return args.n_layers * eager + last_eager, args.n_layers * compiled + last_compiled


def main():
    """Print the table of `memory` in GB, and how much the GPU has, where there is one."""
    try:
        args = ModelArgs(dim, n_layers, n_heads, n_kv_heads, vocab_size, multiple_of=multiple_of,
                         max_seq_len=max_seq_len)  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    parts = memory(args, batch_size, dtype, optimizer, device)
    totals = tuple(sum(column) for column in zip(*parts.values()))
    print(f"a micro-batch of {batch_size} x {max_seq_len} tokens, {dtype}; GB (1e9 bytes) on {device}\n")
    print(f"{'':34} {'eager':>8} {'compiled':>8}")
    for name, (eager, compiled) in (parts | {"total": totals}).items():
        print(f"{name:34} {eager / 1e9:8.2f} {compiled / 1e9:8.2f}")
    print(f"\n{parts['parameters'][0] // 4:,} parameters. CUDA itself takes about 0.5 GB more.")
    if device == "cuda" and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(device).total_memory
        print(f"{torch.cuda.get_device_name(device)} has {total / 1e9:.1f} GB.")


if __name__ == "__main__":
    override(globals())
    main()
