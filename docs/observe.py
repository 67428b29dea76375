"""
What figures.py draws: what the code of the course does when it is run and looked at from outside.

Reads  a checkpoint and a log of train.py, train.py itself
Writes nothing

The model is watched by hooks on its modules, under llama2.c's names.
"""

import ast
import functools
import json
import math
import os
import time

import torch

import model as M
from configurator import InputError
from model import Transformer, apply_rotary_emb, load_checkpoint, precompute_freqs_cis, sample_next_token
from tokenizer import Tokenizer


@functools.cache
def trained(path):
    """(model, tokenizer) of a checkpoint."""
    saved = load_checkpoint(path)
    if not saved.get("tokenizer"):
        raise InputError(f"{path} holds no tokenizer")
    return Transformer.from_checkpoint(saved).eval(), Tokenizer(saved["tokenizer"])


def logged(path, key):
    """[(step, value)] of the rows of a log.jsonl that have the key."""
    with open(path, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    found = [(row["step"], row[key]) for row in rows if key in row]
    if not found:
        raise InputError(f"{path} has no {key}")
    return found


def from_train():
    """train.py's options and its get_lr, out of its text: it is a script, and to import it is to train."""
    scope = {"math": math}
    with open(os.path.join(os.path.dirname(M.__file__), "train.py"), encoding="utf-8") as f:
        tree = ast.parse(f.read())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            scope[node.targets[0].id] = node.value.value
        elif isinstance(node, ast.FunctionDef) and node.name == "get_lr":
            exec(compile(ast.Module([node], []), "train.py", "exec"), scope)
    return scope


def outputs_of(model, tokens, names):
    """{name: what the module of that name gave} for one pass over tokens (B, T), and the logits as ""."""
    seen = {}
    modules = dict(model.named_modules())
    hooks = []
    for name in names:
        hook = functools.partial(lambda name, module, x, y: seen.update({name: y}), name)
        hooks.append(modules[name].register_forward_hook(hook))
    with torch.no_grad():
        seen[""] = model(tokens)
    for hook in hooks:
        hook.remove()
    return seen


def attention(model, tokens):
    """
    The weights (L, H, T, T) by which each head of each layer looks back, for tokens (1, T), and the logits
    (T, V). The model itself never holds the weights: scaled_dot_product_attention does without.
    """
    a = model.args
    T = tokens.shape[1]
    D = a.dim // a.n_heads
    share = a.n_heads // a.n_kv_heads
    parts = [[f"layers.{i}.attention.{w}" for i in range(a.n_layers)] for w in ("wq", "wk")]
    seen = outputs_of(model, tokens, sum(parts, []))
    q, k = (torch.cat([seen[name] for name in names]).unflatten(-1, (-1, D)) for names in parts)
    q, k = apply_rotary_emb(q, k, *precompute_freqs_cis(D, T, a.rope_theta))
    k = k.repeat_interleave(share, 2)  # (L, T, H, D)
    scores = torch.einsum("lqhd,lkhd->lhqk", q, k) / math.sqrt(D)
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1), seen[""][0]


@functools.cache
def copying_head(path, prompt, name):
    """
    The head that copies a name, found by trying all of them, in the text with which the model continues
    a prompt that ends in the name, at temperature 0, up to the name's next occurrence. It is the one
    that looks most from the place where a piece is predicted to that piece in the prompt: an induction head
    (Olsson et al. 2022, arXiv:2209.11895).

    Returns ids (T), [(row, column)] of the copies, (layer, head), its weights (T, T), probabilities (T - 1)
    that the model gave to each id but the first. InputError where the name does not come again.
    """
    model, tok = trained(path)
    pieces = tok.encode(name)
    ids = tok.encode(prompt, bos=True)
    first = len(ids) - len(pieces)
    for (new,) in model.generate_stream(torch.tensor([ids]), 30, temperature=0):
        ids.append(new)
        if ids[-len(pieces) :] == pieces:
            break
    else:
        raise InputError(f"{path}: its model does not come back to {name} within 30 tokens")
    weights, logits = attention(model, torch.tensor([ids]))
    copies = [(len(ids) - len(pieces) - 1 + j, first + j) for j in range(len(pieces))]
    best = sum(weights[..., row, column] for row, column in copies).argmax()  # of (L, H)
    where = divmod(int(best), model.args.n_heads)
    probs = logits[:-1].softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return ids, copies, where, weights[where], probs


@functools.cache
def seconds_a_token(path, runs):
    """The least seconds, of some runs, for each token of the context: with the KV cache, and without."""
    model, tok = trained(path)
    kept = []
    again = []
    for _ in range(runs):
        idx = torch.tensor([[tok.bos_id]])
        times = []
        began = time.perf_counter()
        for new in model.generate_stream(idx, model.args.max_seq_len, temperature=0):
            times.append(time.perf_counter() - began)
            idx = torch.cat((idx, torch.tensor([new])), dim=1)
            began = time.perf_counter()
        kept.append(times)
        again.append([_seconds(model, idx[:, :t]) for t in range(1, idx.shape[1])])
    return [[min(times) for times in zip(*all_runs)] for all_runs in (kept, again)]


@torch.inference_mode()
def _seconds(model, idx):
    """The seconds for the token after idx (1, T), all of it read again."""
    began = time.perf_counter()
    sample_next_token(model.output(model.hidden_states(idx)[:, -1]), temperature=0)
    return time.perf_counter() - began
