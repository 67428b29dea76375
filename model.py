"""
The model: a decoder-only transformer in the shape of LLaMA 2 (Touvron et al. 2023, arXiv:2307.09288).

    tokens (B, T) -> tok_embeddings (B, T, C) -> n_layers x TransformerBlock -> norm -> output (B, T, V)

    TransformerBlock:  x = x + attention(attention_norm(x))    each position looks at those before it
                       x = x + feed_forward(ffn_norm(x))       each position thinks for itself

    B batch   T time   C dim   H query heads   K key/value heads   D head size, C / H   V vocabulary

Pre-norm (norms inside the residual branches), RMSNorm in place of LayerNorm, rotary positions in place of
learned ones, grouped-query attention, a gated feed-forward layer, no biases, input and output embedding
tied. State-dict names are llama2.c's, so that its checkpoints load here and ours there.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from devices import peak_flops
from extras.muon import Muon


@dataclass
class ModelArgs:
    """A model's shape, by default that of LLaMA 2's 7B; ValueError where the numbers do not fit together."""

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None  # key/value heads, each shared by n_heads / n_kv_heads query heads; n_heads
    vocab_size: int = 32000
    hidden_dim: int | None = None  # feed-forward width; two thirds of 4 dim, rounded up to multiple_of
    multiple_of: int = 256
    norm_eps: float = 1e-5
    max_seq_len: int = 2048  # T at most; costs no weights
    dropout: float = 0.0
    rope_theta: float = 10000.0
    tie_embeddings: bool = True  # the output projection is the embedding table, transposed

    def __post_init__(self):
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} does not divide dim={self.dim}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}")
        if self.dim // self.n_heads % 2:
            raise ValueError(f"dim / n_heads = {self.dim}/{self.n_heads} is odd: RoPE turns pairs")
        if not self.hidden_dim:  # three matrices instead of two: 2/3 keeps the number of weights
            self.hidden_dim = math.ceil(8 * self.dim / 3 / self.multiple_of) * self.multiple_of


class RMSNorm(nn.Module):
    """
    Divide by the root mean square of the features, then scale each (Zhang & Sennrich 2019,
    arXiv:1910.07467). (..., C) -> (..., C). Unlike LayerNorm it neither centres nor shifts: as good, and
    one pass less.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = x.float()  # squares of bfloat16 numbers, with their 8 bits, would be too coarse to add up
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight.type_as(x)


def rope_tables(head_dim: int, length: int, theta: float):
    """
    cos and sin of the angle by which position t turns pair i: t * theta^(-2i / D). Two tables of (T, D /
    2), float32. The first pair turns by one radian a token, the last by 1 / theta: a clock with a hand
    for every time scale.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)  # (D / 2)
    angles = torch.outer(torch.arange(length).float(), frequencies)  # (T, D / 2)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """
    Turn the neighbouring features (x0, x1), (x2, x3), ... of each head as points in the plane (Su et al.
    2021, arXiv:2104.09864). (B, T, H, D) -> (B, T, H, D). A turned query times a turned key depends on
    the distance of the two positions alone, and that is all that attention learns of positions.
    """
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # each (B, T, H, D / 2)
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, D / 2), the same for every head
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)


def attention(q, k, v, mask=None, dropout=0.0):
    """
    softmax(q k^T / sqrt(D)) v: each query compares itself with the keys, and takes of their values as much as
    they are alike. q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D). mask (T, S): True where a query may
    look; None: at all positions up to its own, T = S.
    """
    groups = q.shape[1] // k.shape[1]  # H / K
    if torch.compiler.is_compiling() and mask is not None:  # a single query: sums, which the compiler fuses
        q, k, v = q.unflatten(1, (-1, groups)), k.unsqueeze(2), v.unsqueeze(2)  # (B, K, H / K, 1 or S, D)
        weights = ((q * k).sum(-1) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(dim=-1)
        return (weights.unsqueeze(-1) * v).sum(-2, keepdim=True).flatten(1, 2)
    grouped = q.device.type == "cpu"  # a third faster there; on CUDA, not all kernels know groups
    if not grouped:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))  # (B, H, S, D)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=grouped)


class Attention(nn.Module):
    """
    Causal self-attention with grouped queries (Ainslie et al. 2023, arXiv:2305.13245). (B, T, C) -> (B,
    T, C).

        query heads      0  1  2  3  4  5  6  7       8 questions that a position asks
                          \\/    \\/    \\/    \\/
        key/value heads   0     1     2     3         4 answers that it gives; the KV cache shrinks by half
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.n_heads, self.n_kv_heads = args.n_heads, args.n_kv_heads
        self.head_dim = args.dim // args.n_heads
        self.dropout = args.dropout
        self.wq = nn.Linear(args.dim, args.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(args.dim, args.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(args.dim, args.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(args.n_heads * self.head_dim, args.dim, bias=False)

    def forward(self, x, cos, sin, cache=None, at=None, mask=None):
        """
        cache: this layer's keys and values, each (B, K, S, D); those of x join them at the positions `at`.
        With a mask (T, S), x looks at all that the mask lets it see of them; without, only at itself.
        """
        B, T, _ = x.shape
        q = self.wq(x).view(B, T, self.n_heads, self.head_dim)
        k = self.wk(x).view(B, T, self.n_kv_heads, self.head_dim)
        v = self.wv(x).view(B, T, self.n_kv_heads, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        q = apply_rope(q, cos, sin).transpose(1, 2)  # (B, H, T, D)
        k = apply_rope(k, cos, sin).transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            for old, new in zip(cache, (k, v)):
                old.index_copy_(2, at, new)
            if mask is not None:  # earlier positions see nothing new: what they computed stays
                k, v = cache  # (B, K, S, D)
        y = attention(q, k, v, mask, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, H * D)
        return F.dropout(self.wo(y), self.dropout, self.training)


class FeedForward(nn.Module):
    """
    SwiGLU (Shazeer 2020, arXiv:2002.05202): w2(silu(w1 x) * w3 x). (B, T, C) -> (B, T, C).
    w1 is the gate, w3 the way up, w2 the way down (gate_proj, up_proj and down_proj in transformers).
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

    def forward(self, x, cos, sin, cache=None, at=None, mask=None):
        x = x + self.attention(self.attention_norm(x), cos, sin, cache, at, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(TransformerBlock(args) for _ in range(args.n_layers))
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)
        if args.tie_embeddings:  # Press & Wolf 2017, arXiv:1608.05859
            self.output.weight = self.tok_embeddings.weight
        self.compiled_step = None  # step() for a single token, where somebody has compiled it
        cos, sin = rope_tables(args.dim // args.n_heads, args.max_seq_len, args.rope_theta)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # Each block adds two branches to the residual stream. Scaling the last matrix of either,
                # wo and w2, keeps the stream's variance at the depth's end what it was at the beginning
                # (GPT-2; Radford et al. 2019).
                last = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * args.n_layers) if last else 0.02)

    def hidden(self, tokens, cache=None, at=None):
        """
        tokens (B, T) -> (B, T, C), normalised, ready for the output projection. They are the positions 0 to
        T - 1, and leave their keys and values in the cache, L pairs of (B, K, S, D), where there is one.
        With `at` (1), they are that one position, and see what those before it have left.
        """
        T = tokens.shape[1]
        if T > self.args.max_seq_len:
            raise ValueError(f"{T} positions, but max_seq_len is {self.args.max_seq_len}")
        x = F.dropout(self.tok_embeddings(tokens), self.args.dropout, self.training)  # (B, T, C)
        if at is None:
            at, mask = torch.arange(T, device=tokens.device), None
        else:
            mask = torch.arange(cache[0][0].shape[2], device=at.device) <= at[:, None]  # (1, S)
        cos, sin = self.rope_cos[at], self.rope_sin[at]  # (T, D / 2)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, None if cache is None else cache[i], at, mask)
        return self.norm(x)

    def forward(self, tokens, targets=None):
        """
        tokens (B, T) -> logits (B, T, V) and the loss, or None without targets. targets (B, T): the token
        after each; -1 where there is nothing to learn. Loss: mean cross-entropy in nats.
        """
        logits = self.output(self.hidden(tokens))  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)

    def step(self, tokens, cache, at=None):
        """See hidden(): the same, but the logits (B, V) of the token after the last."""
        return self.output(self.hidden(tokens, cache, at)[:, -1])

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device, kind="adamw"):
        """
        A list of optimizers over all weights; weight decay on matrices only. 'adamw': one AdamW
        (Loshchilov & Hutter 2019, arXiv:1711.05101). 'muon': AdamW for the embedding and the gains, and
        Muon for the blocks' matrices (Jordan et al. 2024; its steps scaled to AdamW's size as in Liu et
        al. 2025, arXiv:2502.16982, so that one learning rate serves both).
        """
        blocks = {id(p) for p in self.layers.parameters() if p.dim() == 2 and kind == "muon"}
        matrices = [p for p in self.parameters() if p.dim() == 2 and id(p) not in blocks]
        gains = [p for p in self.parameters() if p.dim() < 2]  # decayed to 0, RMSNorm's would silence a layer
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=device.startswith("cuda"))
        optimizers = [adamw]
        if blocks:
            matrices = [p for p in self.parameters() if id(p) in blocks]
            optimizers.append(Muon(matrices, learning_rate, weight_decay))
        return optimizers

    def estimate_mfu(self, tokens_per_second: float, device_name: str, seq_len: int | None = None):
        """
        Model FLOPs utilisation: what the tokens needed over what the device could, or None for a device
        of unknown peak. PaLM's count (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): 6 FLOPs a
        weight and token for forward and backward, and 12 L H D T a token for attention.
        """
        peak = peak_flops(device_name)
        if peak is None:
            return None
        a, T = self.args, seq_len or self.args.max_seq_len
        looked_up = 0 if a.tie_embeddings else self.tok_embeddings.weight.numel()  # costs no products
        weights = self.num_params() - looked_up
        return (6 * weights + 12 * a.n_layers * a.dim * T) * tokens_per_second / peak

    @torch.inference_mode()
    def stream(
        self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_ids=(), generator=None
    ):
        """
        Continue idx (B, T); yields a tensor (B,) of new ids at each step, until max_new_tokens, or until
        each row has produced one of stop_ids. A row that has stopped goes on yielding its stop id.

        The keys and values of the past are cached, so that a step costs one position, not T. Where the
        context is full (max_seq_len), its newer half is read again from position 0, and there is room for
        as many tokens.
        """
        a = self.args
        if temperature < 0:
            raise ValueError(f"temperature={temperature} is below 0")
        if idx.shape[1] == 0:
            raise ValueError("there is no token to go on from: begin with BOS")
        idx = idx[:, -a.max_seq_len :]
        kind, dtype = idx.device.type, self.layers[0].attention.wk.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        shape = (len(idx), a.n_kv_heads, a.max_seq_len, a.dim // a.n_heads)  # (B, K, S, D)
        # Tensors of their own: of parts of a single one, the compiler copies the whole at each change.
        cache = [[torch.zeros(shape, dtype=dtype, device=idx.device) for _ in "kv"] for _ in self.layers]
        at = None
        if self.compiled_step and idx.is_cuda:  # a recorded graph changes them where they lie
            for tensor in (t for pair in cache for t in pair):
                torch._dynamo.mark_static_address(tensor, guard=False)
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=idx.device)
        new, done = idx[:, -1], torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
        for _ in range(max_new_tokens):
            if idx.shape[1] > a.max_seq_len:
                idx, at = idx[:, -(a.max_seq_len + 1) // 2 :], None
            if at is None:
                logits = self.step(idx, cache)
            else:
                logits = (self.compiled_step or self.step)(new[:, None], cache, at)
            at = torch.tensor([idx.shape[1]], device=idx.device)  # where the new token will stand
            new = torch.where(done, new, pick(logits, temperature, top_k, top_p, generator))  # (B,)
            done = done | torch.isin(new, stops)
            yield new
            if done.all():
                return
            idx = torch.cat((idx, new[:, None]), dim=1)

    def generate(
        self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_ids=(), generator=None
    ):
        """idx (B, T) -> (B, T + new): see stream()."""
        new = list(self.stream(idx, max_new_tokens, temperature, top_k, top_p, stop_ids, generator))
        return torch.cat((idx, *(ids[:, None] for ids in new)), dim=1)


def pick(logits, temperature, top_k=None, top_p=None, generator=None):
    """
    One id for each row of logits (B, V) -> (B,). temperature 0 takes the likeliest; below 1 sharpens,
    above 1 flattens. top_k keeps the k likeliest ids; top_p the fewest whose probabilities add up to p
    (Holtzman et al. 2020, arXiv:1904.09751). None, 0 (top_k) and 1.0 (top_p) keep all.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    logits, ids = logits.topk(k, dim=-1)  # (B, k), the likeliest first
    probs = logits.softmax(dim=-1)
    if top_p and top_p < 1:
        beyond = probs.cumsum(dim=-1) - probs >= top_p  # the ones before it suffice already
        probs = probs.masked_fill(beyond, 0.0)
    # What torch.multinomial does for one id, without its checks, which take longer: of waiting times with the
    # rates `probs`, the shortest is that of i with probability probs[i].
    waits = torch.empty_like(probs).exponential_(generator=generator) / probs
    return ids.gather(-1, waits.argmin(dim=-1, keepdim=True)).squeeze(1)  # (B,)
