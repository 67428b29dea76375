"""
The model: a decoder-only transformer like LLaMA 2 (Touvron et al. 2023, arXiv:2307.09288).

    tokens (B, T) -> tok_embeddings (B, T, C) -> n_layers x TransformerBlock -> norm -> output (B, T, V)

    TransformerBlock:  x = x + attention(attention_norm(x))    each position looks at those before it
                       x = x + feed_forward(ffn_norm(x))       each position is processed by itself

    B batch   T time   C dim   H query heads   K key/value heads   D head size, C / H   V vocabulary
    S length of the KV cache   L layers

x is the residual stream: each block reads it and adds to it. The norms stand inside the branches (pre-norm).
Unlike GPT-2: RMSNorm instead of LayerNorm, rotary positions (RoPE) instead of learned ones,
grouped-query attention (GQA; in LLaMA 2 only the larger models have it), a gated feed-forward layer (SwiGLU),
no biases. The output projection is the embedding table (in LLaMA 2 it is not). The names in the state dict
are llama2.c's, so that its checkpoints load here and ours there.
This file needs torch and nothing else: it can be copied into a notebook.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ModelArgs:
    """The shape of a model, by default the tutorial's small one. ValueError where the numbers do not fit."""

    dim: int = 288
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int | None = 4  # each is shared by n_heads / n_kv_heads query heads; None: n_heads
    vocab_size: int = 4096
    hidden_dim: int | None = None  # feed-forward width; None: 8/3 dim, rounded up to multiple_of
    multiple_of: int = 32
    norm_eps: float = 1e-5
    max_seq_len: int = 256  # T at most; it costs no parameters
    dropout: float = 0.0
    rope_theta: float = 10000.0
    tie_embeddings: bool = True  # the output projection is the embedding table

    def __post_init__(self):
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "vocab_size", "max_seq_len"):
            most = 1 << (10 if name == "n_layers" else 24)
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number from 1 to {most}")
        for name, least, most in (("norm_eps", 0, 1), ("dropout", 0, 1), ("rope_theta", 1, 1e30)):
            if type(getattr(self, name)) not in (int, float) or not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a number from {least} to {most}")
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} does not divide dim={self.dim}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}")
        if self.dim // self.n_heads % 2:
            raise ValueError(f"dim / n_heads = {self.dim}/{self.n_heads} is odd: RoPE rotates pairs")
        if not self.hidden_dim:  # three matrices instead of two: 2/3 of 4 dim keeps the number of parameters
            self.hidden_dim = math.ceil(8 * self.dim // 3 / self.multiple_of) * self.multiple_of


class RMSNorm(nn.Module):
    """
    Divide by the root mean square of the features, then scale each (Zhang & Sennrich 2019, arXiv:1910.07467).
    (..., C) -> (..., C). Unlike LayerNorm it neither centres nor shifts: as good, and cheaper.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = x.float()  # bfloat16 has 8 bits: too few to add up squares
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight.type_as(x)


def precompute_freqs_cis(head_dim: int, end: int, theta: float = 10000.0):
    """
    cos and sin of the angle by which RoPE rotates pair i at position t: t * theta^(-2i / D). Two tables of
    (end, D / 2), float32. The first pair rotates by 1 radian per token, the last by theta^(2 / D) / theta:
    some pairs tell close positions apart, others distant ones.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)  # (D / 2)
    angles = torch.outer(torch.arange(end).float(), frequencies)  # (end, D / 2)
    return angles.cos(), angles.sin()


def apply_rotary_emb(xq, xk, freqs_cos, freqs_sin):
    """
    Rotate the neighbouring features (x0, x1), (x2, x3), ... of queries (B, T, H, D) and keys (B, T, K, D), as
    points in the plane (Su et al. 2021, arXiv:2104.09864). Then the product of a query and a key depends on
    their positions only by the distance.
    """
    cos, sin = freqs_cos[:, None, :], freqs_sin[:, None, :]  # (T, 1, D / 2), the same for every head

    def rotate(x):
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # each (B, T, heads, D / 2)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)

    return rotate(xq), rotate(xk)


def attend(q, k, v, mask=None, dropout=0.0, grouped=None):
    """
    softmax(q k^T / sqrt(D)) v (plain: docs/minimal.py): each query gets the mean of the values, weighted by
    similarity to their keys. q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D). mask, (T, S) or
    (B, 1, T, S): True where a query may look. None: causal, at all positions up to its own; T = S.
    grouped: whether the kernel takes K heads as they are (a third faster on a CPU; on CUDA not all do) or H.
    """
    D = q.shape[3]
    if grouped is None:
        grouped = q.device.type == "cpu"
    if not grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))  # (B, H, S, D)
        if D % 8:  # CUDA's fast kernels want a multiple of 8: zeros change no product
            q, k, v = (F.pad(x, (0, -D % 8)) for x in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=mask is None, scale=D**-0.5, enable_gqa=grouped
    )
    return y[..., :D]


class Attention(nn.Module):
    """
    Causal self-attention, grouped queries (Ainslie et al. 2023, arXiv:2305.13245). (B, T, C) -> (B, T, C).

        query heads      0  1  2  3  4  5  6  7       H = 8: what a position looks for
                          \\/    \\/    \\/    \\/
        key/value heads   0     1     2     3         K = 4: what it offers; half the KV cache
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.head_dim = args.dim // args.n_heads
        self.dropout = args.dropout
        self.attend = attend  # extras/fast_decode.py puts another function here
        self.wq = nn.Linear(args.dim, args.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(args.dim, args.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(args.dim, args.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(args.n_heads * self.head_dim, args.dim, bias=False)

    def forward(self, x, freqs_cos, freqs_sin, cache=None, pos=None, mask=None):
        """
        cache: this layer's keys and values, each (B, K, S, D); those of x are written to the positions `pos`.
        With `cache` and a mask (T, S), x attends to the cache; otherwise to itself.
        """
        B, T, _ = x.shape
        q, k, v = (w(x).view(B, T, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))  # k: (B, T, K, D)
        q, k = apply_rotary_emb(q, k, freqs_cos, freqs_sin)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # q (B, H, T, D), k and v (B, K, T, D)
        if cache is not None:
            cache[0].index_copy_(2, pos, k)
            cache[1].index_copy_(2, pos, v)
            if mask is not None:
                k, v = cache  # (B, K, S, D)
        y = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, H * D)
        return F.dropout(self.wo(y), self.dropout, self.training)


class FeedForward(nn.Module):
    """
    SwiGLU (Shazeer 2020, arXiv:2002.05202): w2(silu(w1 x) * w3 x). (B, T, C) -> (B, T, C).
    w1 is the gate, w3 the up projection, w2 the down projection (gate_, up_ and down_proj in transformers).
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.dropout = args.dropout
        self.w1 = nn.Linear(args.dim, args.hidden_dim, bias=False)
        self.w2 = nn.Linear(args.hidden_dim, args.dim, bias=False)
        self.w3 = nn.Linear(args.dim, args.hidden_dim, bias=False)

    def forward(self, x):
        return F.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)), self.dropout, self.training)


class TransformerBlock(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.attention = Attention(args)
        self.feed_forward = FeedForward(args)
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)

    def forward(self, x, freqs_cos, freqs_sin, cache=None, pos=None, mask=None):
        x = x + self.attention(self.attention_norm(x), freqs_cos, freqs_sin, cache, pos, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.num_pieces = args.vocab_size  # ids that generation may take: fewer, if the vocabulary is padded
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(TransformerBlock(args) for _ in range(args.n_layers))
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)
        if args.tie_embeddings:  # Press & Wolf 2017, arXiv:1608.05859
            self.output.weight = self.tok_embeddings.weight
        head_dim = args.dim // args.n_heads
        freqs_cos, freqs_sin = precompute_freqs_cis(head_dim, args.max_seq_len, args.rope_theta)
        self.register_buffer("freqs_cos", freqs_cos, persistent=False)
        self.register_buffer("freqs_sin", freqs_sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                # Each block adds two branches to the residual stream. The last matrix of each, wo and w2, is
                # scaled down, so that the sum of the 2 L branches does not grow with the depth (as in GPT-2).
                last = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * args.n_layers) if last else 0.02)

    @classmethod
    def from_checkpoint(cls, checkpoint, **changes):
        """The model of a checkpoint (see load_checkpoint); `changes`: other max_seq_len, dropout."""
        weights = {name.removeprefix("_orig_mod."): w for name, w in checkpoint["model"].items()}  # nanoGPT's
        table = weights["tok_embeddings.weight"]
        hidden_dim = len(weights["layers.0.feed_forward.w1.weight"])
        left_out = {"hidden_dim": hidden_dim, "n_heads": None, "n_kv_heads": None, "max_seq_len": 2048}
        args = ModelArgs(**{**left_out, **checkpoint["model_args"], **changes})
        args.tie_embeddings &= torch.equal(weights.setdefault("output.weight", table), table)
        model = cls(args)
        model.load_state_dict(weights)
        return model

    def forward(self, tokens, targets=None, documents=None):
        """
        tokens (B, T) -> logits (B, T, V): for each position, a number for every token that may come next.

        With targets (B, T), the token after each, or -1 where there is nothing to learn: the loss instead,
        the mean cross-entropy in nats per learned target. documents (B, T) are numbers: tokens attend only to
        tokens of the same number. None: the whole row is one document.
        """
        logits = self.output(self.hidden_states(tokens, documents=documents))  # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)

    def hidden_states(self, tokens, cache=None, pos=None, documents=None):
        """
        tokens (B, T) -> (B, T, C), normalised, for the output projection. They are at the positions 0 to
        T - 1, and write their keys and values into the cache where one is given. With `pos` (1), T is 1: the
        token is at that position, and attends to what the cache holds up to there.
        """
        mask = None
        if pos is None:
            pos = torch.arange(tokens.shape[1], device=tokens.device)  # (T)
            if documents is not None:  # RoPE knows distances only, so each may begin at any position
                same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
                mask = (same & (pos[:, None] >= pos))[:, None]  # (B, 1, T, T)
        else:
            mask = torch.arange(cache[0][0].shape[2], device=pos.device) <= pos[:, None]  # (1, S)
        x = F.dropout(self.tok_embeddings(tokens), self.args.dropout, self.training)  # (B, T, C)
        freqs_cos, freqs_sin = self.freqs_cos[pos], self.freqs_sin[pos]  # (T, D / 2)
        for i, layer in enumerate(self.layers):
            x = layer(x, freqs_cos, freqs_sin, None if cache is None else cache[i], pos, mask)
        return self.norm(x)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def configure_optimizers(self, weight_decay, learning_rate, betas):
        """
        AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), with weight decay on matrices only. fused: one
        kernel for many parameters; it changes nothing in a step where the tensor found_inf of it is 1.
        """
        matrices = [p for p in self.parameters() if p.dim() > 1]
        vectors = [p for p in self.parameters() if p.dim() < 2]  # RMSNorm's: decay would silence a layer
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, learning_rate, betas, weight_decay=weight_decay, fused=True)

    def estimate_mfu(self, tokens_per_second, peak_flops, seq_len=None):
        """
        Model FLOPs utilisation (MFU): the FLOPs that the tokens needed over those that the device could do;
        None where its peak is unknown. 6 FLOPs per parameter and token for forward and backward, and
        12 L H D T per token for attention, as PaLM counts (Chowdhery et al. 2022, arXiv:2204.02311).
        """
        if peak_flops is None:
            return None
        T = seq_len or self.args.max_seq_len
        looked_up = 0 if self.args.tie_embeddings else self.tok_embeddings.weight.numel()  # not multiplied
        flops_per_token = 6 * (self.num_params() - looked_up) + 12 * self.args.n_layers * self.args.dim * T
        return flops_per_token * tokens_per_second / peak_flops

    # ------------ generation -----------------------------------------------------------------------------

    def make_cache(self, batch_size):
        """The KV cache: for each layer, keys and values of max_seq_len positions, (B, K, S, D) each."""
        args = self.args
        weight = self.layers[0].attention.wk.weight
        autocast = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
        shape = (batch_size, args.n_kv_heads, args.max_seq_len, args.dim // args.n_heads)
        return [[torch.zeros(shape, dtype=dtype, device=weight.device) for _ in "kv"] for _ in self.layers]

    def decode_step(self, tokens, cache, pos=None):
        """The logits (B, V) of the token after the last; for tokens, cache and pos see hidden_states."""
        return self.output(self.hidden_states(tokens, cache, pos)[:, -1])

    @torch.inference_mode()
    def generate_stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_ids=(),
                        generator=None, not_first=()):  # fmt: skip
        """
        Continue idx (B, T), first by none of not_first. Yields a list of the B new ids of each step, until
        there are max_new_tokens or every row has produced one of stop_ids, which it then repeats.

        With the keys and values of earlier positions cached, a step computes one position instead of T. When
        the context (max_seq_len) is full, the newer half is read again from position 0.
        """
        context = self.args.max_seq_len
        idx = idx[:, -context:]
        cache = self.make_cache(len(idx))
        pos = None
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=idx.device)
        new = idx[:, -1]
        stopped = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
        for step in range(max_new_tokens):
            if idx.shape[1] > context:
                idx = idx[:, -(context + 1) // 2 :]
                pos = None
            logits = self.decode_step(idx if pos is None else new[:, None], cache, pos)[:, : self.num_pieces]
            if step == 0 and not_first:
                logits[:, not_first] = -torch.inf
            pos = torch.full((1,), idx.shape[1], device=idx.device)  # of the new token
            new = torch.where(stopped, new, sample_next_token(logits, temperature, top_k, top_p, generator))
            stopped = stopped | torch.isin(new, stops)
            yield (ids := new.tolist())  # waits for the device, once a token
            if set(ids) <= set(stop_ids):
                return
            idx = torch.cat((idx, new[:, None]), dim=1)

    def generate(self, idx, max_new_tokens, *args, **kwargs):
        """idx (B, T) -> (B, T + new); the arguments are those of generate_stream."""
        new = list(self.generate_stream(idx, max_new_tokens, *args, **kwargs))
        return torch.cat((idx, idx.new_tensor(new).reshape(-1, len(idx)).T), dim=1)


def sample_next_token(logits, temperature, top_k=None, top_p=None, generator=None):
    """
    Sample one id for each row of logits: (B, V) -> (B,). Temperature 0 takes the likeliest; below 1 sharpens
    the distribution, above 1 flattens it. top_k keeps the k likeliest ids, top_p the fewest whose
    probabilities add up to p (Holtzman et al. 2020, arXiv:1904.09751); None, 0 and 1.0 keep all.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-8)  # no overflow
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    logits, ids = logits.topk(k, dim=-1)  # (B, k), the likeliest first
    probs = logits.softmax(dim=-1)
    if top_p and top_p < 1:
        surplus = probs.cumsum(dim=-1) - probs >= top_p  # the ones before it are enough
        probs = probs.masked_fill(surplus, 0.0)
    # The same distribution as torch.multinomial, without its checks, which take longer. Draw for each i an
    # exponential waiting time with the rate probs[i]: the shortest is that of i with probability probs[i].
    waits = torch.empty_like(probs).exponential_(generator=generator) / probs
    return ids.gather(-1, waits.argmin(dim=-1, keepdim=True)).squeeze(1)  # (B,)


# ------------ checkpoints ---------------------------------------------------------------------------------


def load_checkpoint(path, mmap=False):
    """
    A .pt file as a dict of tensors and plain types, on the CPU; nothing in it can run (weights_only, safe
    from torch 2.6 on). It has "model", the state dict, and "model_args", as llama2.c's. mmap: read on demand.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def model_args_dict(args):
    """A model's args for a checkpoint; those that llama2.c does not know only where they are unusual."""
    usual = (("rope_theta", 10000.0), ("tie_embeddings", True))
    return {key: value for key, value in asdict(args).items() if (key, value) not in usual}
