"""
Will it fit? The memory of a training step by formula, eager and compiled. Then, for four models and five
graphics cards, the batch to take and the hours that the training takes: computed, not measured.

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
utilisation = 0.3  # above 0, at most 1: part of a card's peak that is reached; less by small models

CARDS = {  # GB of memory: (a card, its FLOP/s; those that devices.PEAK_FLOPS lacks: twice float32's)
    6: ("RTX 3050", 13.5e12),
    8: ("RTX 4060", 30e12),
    12: ("RTX 3060", 25e12),
    24: ("RTX 4090", 165e12),
    80: ("A100", 312e12),
}
MODELS = {  # name: (args, sequences in a step)
    "the tutorial's": (ModelArgs(), 128),
    "26M": (ModelArgs(512, 8, 8, 2, 6400, multiple_of=64, max_seq_len=512), 256),
    "80M": (ModelArgs(768, 12, 12, 4, 6144, max_seq_len=512), 512),
    "215M": (ModelArgs(1024, 18, 16, 8, 6144, multiple_of=64, max_seq_len=512), 512),
}
TOKENS_PER_PARAMETER = 20  # gave the lowest loss for its FLOPs in Hoffmann et al. 2022, arXiv:2203.15556
CUDA_BYTES = 0.5e9  # what CUDA itself takes


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


def print_cards():
    """For each of MODELS and CARDS the largest batch, a power of two, that leaves a tenth free, eager."""
    print(f"\nHours are computed, not measured: the FLOPs at {utilisation:.0%} of the card's peak.")
    print("They are for the compute-optimal number of tokens; small models are often trained on far more.")
    for name, (args, sequences) in MODELS.items():
        with torch.device("meta"):
            model = Transformer(args)
        parts = memory(args, 1, dtype, optimizer)
        per_sequence, compiled = (a + b for a, b in zip(parts.pop("activations"), parts.pop("logits")))
        fixed = CUDA_BYTES + sum(eager for eager, _ in parts.values())
        num_params = model.num_params()
        tokens = TOKENS_PER_PARAMETER * num_params
        print(f"\n{name}: {num_params:,} parameters, steps of {sequences} x {args.max_seq_len} tokens")
        print(f"  hours for {tokens / 1e6:,.0f} million tokens, {TOKENS_PER_PARAMETER} per parameter")
        print(f"  {'card':16} {'batch':>6} {'accumulation':>13} {'GB eager':>9} {'compiled':>9} {'hours':>8}")
        for gigabytes, (card, peak) in CARDS.items():
            most = (0.9e9 * gigabytes - fixed) / per_sequence
            batch = min(sequences, 2 ** int(math.log2(most))) if most >= 1 else 0
            row = f"  {gigabytes:>2} GB, {card:9} {batch:6} "
            sizes = [(fixed + batch * size) / 1e9 for size in (per_sequence, compiled)]
            hours = tokens * model.estimate_mfu(1, peak) / utilisation / 3600
            numbers = f"{sizes[0]:9.1f} {sizes[1]:9.1f} {hours:8.3g}"
            print(row + (f"{sequences // batch:13} {numbers}" if batch else "does not fit"))


def main():
    """Print the table of `memory` in GB, how much the GPU has, where there is one, and the table of cards."""
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
    print_cards()


if __name__ == "__main__":
    override(globals())
    main()
