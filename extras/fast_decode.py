"""
Generation with a compiled step: sample.py --compile=True.

A token takes many small operations, each of which waits for its weights or for its launch. On CUDA the step
is recorded as a graph, since launching the kernels one by one takes longer than they do. On a CPU the weights
become constants of the compiled code, packed once in the order in which a product of few rows reads them:
MKL's products read the weights for a single row at a fifth of that speed. Measured in docs/experiments.md.
"""

import functools
import hashlib
import math

import torch

from configurator import InputError, first_sentence
from devices import compile_error
from model import attend

# Options for torch.compile (its compiler is inductor) on a CPU: use its own kernels for matrix products, and
# one product for matrices that share an input; call the kernels from C++; do not check at each token whether
# the sizes and the weights are still the same.
CPU_OPTIONS = {
    "max_autotune_gemm": True,
    "max_autotune_gemm_backends": "CPP",
    "cpp.enable_concat_linear": True,
    "cpp_wrapper": True,
    "size_asserts": False,
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
}


def compile_decoding(model, device):
    """
    Let model.generate_stream use a compiled decode_step. After that the weights must not change, and of the
    streams with one number of rows only one may run at a time: they share their KV cache, so that a recorded
    graph finds it at the same address. InputError where torch.compile does not work.
    """
    error = compile_error(device)
    if error:
        raise InputError(f"--compile=True does not work here: {error}")
    eager = model.decode_step
    for layer in model.layers:
        layer.attention.attend = attend_one_query
    if device.startswith("cpu"):
        compiled = compile_for_cpu(model)
    else:
        mode = "reduce-overhead" if device.startswith("cuda") else None
        compiled = torch.compile(eager, dynamic=False, mode=mode)
    make_cache = model.make_cache

    @functools.cache
    def make_cache_once(batch_size):
        cache = make_cache(batch_size)
        if device.startswith("cuda"):  # the graph writes to them in place
            for tensor in (t for pair in cache for t in pair):
                torch._dynamo.mark_static_address(tensor, guard=False)
        return cache

    model.make_cache = make_cache_once
    model.decode_step = lambda tokens, cache, pos=None: (
        eager(tokens, cache) if pos is None else compiled(tokens, cache, pos)
    )


def attend_one_query(q, k, v, mask=None, dropout=0.0):
    """model.attend, for a single query written as sums, which the compiler fuses. T is 1."""
    if mask is None:
        return attend(q, k, v, mask, dropout)
    q = q.unflatten(1, (k.shape[1], -1))  # (B, K, H / K, 1, D)
    k = k.unsqueeze(2)  # (B, K, 1, S, D)
    v = v.unsqueeze(2)
    scores = (q * k).sum(-1) / math.sqrt(q.shape[-1])  # (B, K, H / K, S)
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return (weights.unsqueeze(-1) * v).sum(-2, keepdim=True).flatten(1, 2)  # (B, H, 1, D)


def compile_for_cpu(model):
    digest = hashlib.sha256()
    for t in (*model.parameters(), *model.buffers()):  # all that becomes a constant, the tables of RoPE too
        digest.update(t.detach().contiguous().view(torch.uint8).numpy())
    tag = digest.hexdigest()
    compiled = torch.compile(model.decode_step, dynamic=False, options=CPU_OPTIONS)
    known = set()

    def decode_step(tokens, cache, pos):
        kind = (tokens.shape, cache[0][0].dtype)
        if kind in known:
            return compiled(tokens, cache, pos)
        known.add(kind)
        # The option `freezing` would come too late. Weights that oneDNN packs cannot be cached. And torch's
        # key to its cache of compiled code does not know the weights that the code holds: the tag does.
        torch.backends.mkldnn.set_flags(False)
        try:
            with torch._inductor.config.patch(freezing=True), torch.compiler.config.patch(cache_key_tag=tag):
                return compiled(tokens, cache, pos)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise InputError(f"--compile=True does not work here: {first_sentence(error)}") from error
        finally:
            torch.backends.mkldnn.set_flags(True)

    return decode_step
