"""
Weights from three kinds of places as one, for extras/export.py: our checkpoints, transformers' folders,
llama2.c's .bin files.

Whatever it came from, a Source holds the weights under our names, mapped: the operating system reads a
page of the file when somebody looks at it, and may drop it again. walk() goes over them in a fixed order,
one tensor at a time. So a conversion needs the memory of the largest matrix, not of the model.
"""

import json
import math
import os
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import torch

import model as M
from checkpoints import build_model, load_checkpoint
from documents import read_json
from tokenizer import Tokenizer

# The parts of a block in the order of llama2.c's files, and what transformers and GGUF call them.
LAYER = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "attention.wq": ("self_attn.q_proj", "attn_q"),
    "attention.wk": ("self_attn.k_proj", "attn_k"),
    "attention.wv": ("self_attn.v_proj", "attn_v"),
    "attention.wo": ("self_attn.o_proj", "attn_output"),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm"),
    "feed_forward.w1": ("mlp.gate_proj", "ffn_gate"),
    "feed_forward.w2": ("mlp.down_proj", "ffn_down"),
    "feed_forward.w3": ("mlp.up_proj", "ffn_up"),
}
LLAMA2C_MAGIC = 0x616B3432  # "ak42": how all versions but 0 begin
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LLAMA_DEFAULTS = {  # of transformers' LlamaConfig, for what a config.json leaves out
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu",
}  # fmt: skip


@dataclass
class Source:
    args: M.ModelArgs
    weights: dict  # {our name: mapped tensor}
    tokenizer: Tokenizer | None
    halves: bool  # wq and wk are in transformers' order: see to_halves


def names(args):
    """[(our name, transformers', GGUF's)] of every weight, in llama2.c's order; a tied output is none."""
    rows = [("tok_embeddings", "model.embed_tokens", "token_embd")]
    for ours, (hf, gguf) in LAYER.items():
        for i in range(args.n_layers):
            rows.append((f"layers.{i}.{ours}", f"model.layers.{i}.{hf}", f"blk.{i}.{gguf}"))
    rows.append(("norm", "model.norm", "output_norm"))
    if not args.tie_embeddings:
        rows.append(("output", "lm_head", "output"))
    return [tuple(f"{name}.weight" for name in row) for row in rows]


def walk(source, halves=False):
    """Yield (our name, tensor) for every weight. halves: wq and wk in the order that transformers has."""
    for name, *_ in names(source.args):
        w = source.weights[name]
        if name.endswith(("wq.weight", "wk.weight")) and halves != source.halves:
            heads = source.args.n_heads if name.endswith("wq.weight") else source.args.n_kv_heads
            w = to_halves(w, heads) if halves else to_pairs(w, heads)
        yield name, w


def to_halves(w, n_heads):
    """
    Reorder the rows of wq or wk (H * D, C) from llama2.c's RoPE to transformers'.

    Both turn D / 2 pairs of features of each head by the same angles. llama2.c (and Meta, and GGUF) pairs
    neighbours, (0, 1), (2, 3), ...; transformers pairs feature i with i + D / 2, since cutting a vector
    into halves is cheaper than picking every other feature:

        features of a head, D = 6   0 1 2 3 4 5      pairs (0 1) (2 3) (4 5)
        in transformers' order      0 2 4 1 3 5      place i and i + 3 hold a pair

    Queries and keys meet only in their dot product, which does not care about the order of features as
    long as it is the same in both. So the same rows in another order are the same model.
    """
    return w.reshape(n_heads, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)


def to_pairs(w, n_heads):
    """The way back from to_halves."""
    return w.reshape(n_heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)


def open_source(path, tokenizer=None):
    """The Source at `path`. ValueError says what is wrong with it, or has no place in model.py."""
    if os.path.isdir(path):
        weights, model_args, tok = read_transformers(path)
    elif path.endswith(".bin"):
        weights, model_args, tok = read_llama2c(path)
    else:
        saved = load_checkpoint(path, mmap=True)
        weights, model_args = saved["model"], saved["model_args"]
        tok = Tokenizer(saved["tokenizer"]) if saved.get("tokenizer") else None
    weights = {name.removeprefix("_orig_mod."): w for name, w in weights.items()}
    args = empty_model({"model": weights, "model_args": model_args}).args
    tok = Tokenizer(tokenizer) if tokenizer else tok
    if tok and tok.n_words > args.vocab_size:
        raise ValueError(
            f"{tok.name} has {tok.n_words} pieces, the model a vocabulary of {args.vocab_size}"
        )
    return Source(args, weights, tok, halves=os.path.isdir(path))


def empty_model(checkpoint):
    """The checkpoint's model on torch's device "meta", without weights: build_model as a check."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta parameter.*")  # "copies nothing": as it should
        return build_model(checkpoint)


# --------------------------------------------------------------------------------------------------------
# llama2.c


def read_llama2c(path):
    """
    A .bin of version 0: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size,
    context), then float32 weights in the order of names(). vocab_size is negative where the output is not
    tied. Behind norm lie RoPE's tables, which nobody reads any more. It knows neither rope_theta nor
    norm_eps: run.c has 10000 and 1e-5.
    """
    size = os.path.getsize(path)
    if size < 28:
        raise ValueError(f"{path} is not a llama2.c .bin: {size} bytes")
    data = np.memmap(path, dtype=np.uint8, mode="c")  # "c": torch wants memory that could be written to
    magic, version = struct.unpack("<Ii", data[:8])
    if magic == LLAMA2C_MAGIC:
        raise ValueError(
            f"{path} is a llama2.c .bin of version {version}: only version 0, float32, is read"
        )
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", data[:28])
    if min(dim, hidden, layers, heads, kv_heads, abs(vocab), context) < 1 or 4 * dim * layers > size:
        raise ValueError(f"{path} is not a llama2.c .bin: its first numbers are no model's")
    model_args = {
        "dim": dim, "hidden_dim": hidden, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv_heads,
        "vocab_size": abs(vocab), "max_seq_len": context, "tie_embeddings": vocab > 0,
    }  # fmt: skip
    args = M.ModelArgs(**model_args)
    with torch.device("meta"):
        empty = M.Transformer(args).state_dict()
    at, weights = 28, {}
    for name, *_ in names(args):
        count = empty[name].numel()
        if at + 4 * count <= size:
            w = torch.frombuffer(data, dtype=torch.float32, count=count, offset=at)
            weights[name] = w.view(empty[name].shape)
        at += 4 * count + (4 * context * (dim // heads) if name == "norm.weight" else 0)
    if at != size:
        raise ValueError(f"{path} is not whole: its {size} bytes do not fit the model that it begins with")
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    return weights, model_args, None


# --------------------------------------------------------------------------------------------------------
# transformers


def read_transformers(folder):
    """A LlamaForCausalLM's folder: config.json, model.safetensors (or its parts and their index)."""
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise ValueError(f"{folder} is no model of transformers': there is no config.json in it")
    model_args = args_of_config(LLAMA_DEFAULTS | read_json(os.path.join(folder, "config.json")), folder)
    single, index = (os.path.join(folder, f"model.safetensors{end}") for end in ("", ".index.json"))
    if os.path.exists(single):
        files = [single]
    elif os.path.exists(index):
        files = sorted({os.path.join(folder, name) for name in read_json(index)["weight_map"].values()})
    else:
        raise ValueError(f"{folder} holds no model.safetensors; transformers' save_pretrained() writes one")
    found = {name: w for path in files for name, w in read_safetensors(path).items()}

    table = {hf: ours for ours, hf, _ in names(M.ModelArgs(**model_args))}
    missing = [hf for hf in table if hf not in found]
    # inv_freq is RoPE's table in old files; a tied lm_head is the embedding once more
    surplus = [hf for hf in found.keys() - table.keys() if not hf.endswith(("inv_freq", "lm_head.weight"))]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has {min(surplus)}, for which model.py has no place"
        raise ValueError(f"{folder} {what}")
    weights = {ours: found[hf] for hf, ours in table.items()}
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    for name in ("tokenizer.json", "tokenizer.model"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return weights, model_args, Tokenizer(folder if name == "tokenizer.json" else path)
    return weights, model_args, None


def args_of_config(config, folder):
    """config.json -> model_args. What model.py cannot be is refused, by the name it has in config.json."""
    kind = (config.get("architectures") or [config.get("model_type")])[0]
    # transformers 5 has everything about RoPE in rope_parameters, 4 had rope_theta and rope_scaling
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    part = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    head_dim = config["hidden_size"] / config["num_attention_heads"]
    for wrong, reason in (
        (config.get("model_type") != "llama" or kind not in ("LlamaForCausalLM", "llama"),
         f"it is a {kind}, and only LlamaForCausalLM has model.py's shape"),
        (scaling != "default", f"rope_scaling ({scaling}): model.py turns positions by RoPE's own angles"),
        (part not in (None, 1), f"partial_rotary_factor={part}: model.py turns whole heads"),
        (config.get("attention_bias"), "attention_bias=True: model.py's projections have none"),
        (config.get("mlp_bias"), "mlp_bias=True: model.py's projections have none"),
        (config.get("head_dim") not in (None, head_dim),
         f"head_dim={config.get('head_dim')}, where hidden_size / num_attention_heads is {head_dim:g}"),
        (config["hidden_act"] not in ("silu", "swish"), f"hidden_act={config['hidden_act']}, not silu"),
        (config.get("quantization_config"), "its weights are quantised (quantization_config)"),
    ):  # fmt: skip
        if wrong:
            raise ValueError(f"{folder} cannot become a checkpoint: {reason}")
    return {
        "dim": config["hidden_size"], "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"], "n_kv_heads": config.get("num_key_value_heads"),
        "vocab_size": config["vocab_size"], "hidden_dim": config["intermediate_size"],
        "norm_eps": config["rms_norm_eps"], "max_seq_len": config["max_position_embeddings"],
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }  # fmt: skip


def read_safetensors(path):
    """
    {name: mapped tensor}. The format is a uint64 with the length of a header, the header (JSON: dtype,
    shape and place of each tensor), the tensors back to back (https://huggingface.co/docs/safetensors):
    too simple for a package.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="c")
        begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:begin].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, t in header.items():
            if t["dtype"] not in SAFETENSORS_DTYPES:
                raise ValueError(f"{name} is {t['dtype']}; {', '.join(SAFETENSORS_DTYPES)} can be read")
            dtype, shape, at = SAFETENSORS_DTYPES[t["dtype"]], t["shape"], begin + t["data_offsets"][0]
            w = torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=at)
            tensors[name] = w.view(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors
