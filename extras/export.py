"""
Converts a model between our checkpoints and the formats of transformers, llama2.c and GGUF.

Reads  a checkpoint of ours or of llama2.c's, a folder of transformers' (LlamaForCausalLM), or llama2.c's .bin
Writes one of

    hf           a folder that AutoModelForCausalLM and AutoTokenizer load; needs pip install transformers
    llama2c      .bin of version 0, float32, for llama2.c's run.c, and a tokenizer: tokenizer.bin beside
                 model.bin, story.tokenizer.bin beside story.bin
    llama2c_q80  .bin of version 2, int8, for llama2.c's runq.c, and tokenizer_q80.bin beside model_q80.bin
    gguf         float16, for llama.cpp, Ollama and LM Studio; needs pip install gguf
    gguf_q8_0    the same with int8 matrices
    ckpt         a checkpoint for sample.py, and for train.py --init_from=PATH

    python -m extras.export --export_format=hf                          output/ckpt.pt to output/hf
    python -m extras.export --export_format=gguf_q8_0 --out=story.gguf  then: llama-cli -m story.gguf
    python -m extras.export --export_format=ckpt --checkpoint=stories15M.bin --tokenizer=tokenizer.model
    python -m extras.export --export_format=ckpt --checkpoint=SmolLM2-135M      to output/imported.pt

load_weights() makes four things of whatever it reads: args (ModelArgs), weights ({our name: tensor}, in the
dtype that they have there), tok (a Tokenizer or None) and stop_ids (ids that end a text, besides tok's). Each
write_... function takes these and a path. What the other program would understand otherwise than this one is
refused before anything is written. How to check an export: docs/recipes.md.
"""

import dataclasses
import functools
import math
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch

from configurator import InputError, atomic_write, first_sentence, override
from extras import gguf_export, import_optional
from extras.hf_folder import CONFIG_NAMES, check_folder, check_stop_ids, read_config, replace_folder
from extras.hf_tokenizer import tokenizer_files
from extras.tokenizer_check import tokenizer_beside
from model import ModelArgs, Transformer, model_args_dict, precompute_freqs_cis
from reader import read_checkpoint
from tokenizer import Tokenizer

checkpoint = "output/ckpt.pt"  # what to convert: a checkpoint, a folder of transformers', or a .bin
export_format = "hf"  # hf | llama2c | llama2c_q80 | gguf | gguf_q8_0 | ckpt: what to convert it to
out = ""  # where to write it; empty: into output/, see FORMATS
tokenizer = ""  # a tokenizer, if the checkpoint holds none

# The parts of a block in the order of llama2.c's files: our name, transformers' and GGUF's.
BLOCK_NAMES = [
    ("attention_norm", "input_layernorm", "attn_norm"),
    ("attention.wq", "self_attn.q_proj", "attn_q"),
    ("attention.wk", "self_attn.k_proj", "attn_k"),
    ("attention.wv", "self_attn.v_proj", "attn_v"),
    ("attention.wo", "self_attn.o_proj", "attn_output"),
    ("ffn_norm", "post_attention_layernorm", "ffn_norm"),
    ("feed_forward.w1", "mlp.gate_proj", "ffn_gate"),
    ("feed_forward.w2", "mlp.down_proj", "ffn_down"),
    ("feed_forward.w3", "mlp.up_proj", "ffn_up"),
]
LLAMA2C_MAGIC = 0x616B3432  # "ak42", with which all versions but 0 begin


def weight_names(args):
    """[(our name, transformers', GGUF's)] of every weight in llama2.c's order, without a tied output."""
    rows = [("tok_embeddings", "model.embed_tokens", "token_embd")]
    for ours, hf, gguf in BLOCK_NAMES:
        for i in range(args.n_layers):
            rows.append((f"layers.{i}.{ours}", f"model.layers.{i}.{hf}", f"blk.{i}.{gguf}"))
    rows.append(("norm", "model.norm", "output_norm"))
    if not args.tie_embeddings:
        rows.append(("output", "lm_head", "output"))
    return [tuple(f"{name}.weight" for name in row) for row in rows]


def iter_weights(args, weights):
    """(our name, tensor) of every weight in llama2.c's order."""
    return ((name, weights[name]) for name, _, _ in weight_names(args))


def permute(w, n_heads):
    """
    Reorder the rows of wq or wk (H * D, C) from llama2.c's RoPE to transformers'.

    Both rotate D / 2 pairs of features of each head by the same angles. llama2.c (and Meta, and GGUF) pairs
    neighbours, (0, 1), (2, 3), ...; transformers pairs feature i with i + D / 2, since cutting a vector
    into halves is cheaper than picking every other feature:

        features of a head, D = 6   0 1 2 3 4 5      pairs (0 1) (2 3) (4 5)
        in transformers' order      0 2 4 1 3 5      positions i and i + 3 hold a pair

    Queries and keys meet only in their dot product, which does not depend on the order of features as long
    as it is the same in both. So the same rows in another order are the same model.
    """
    pairs = w.reshape(n_heads, -1, 2, w.shape[1])  # (H, D / 2, 2, C)
    return pairs.transpose(1, 2).reshape(w.shape)  # (H, 2, D / 2, C) -> (H * D, C)


def unpermute(w, n_heads):
    """The inverse of permute."""
    halves = w.reshape(n_heads, 2, -1, w.shape[1])  # (H, 2, D / 2, C)
    return halves.transpose(1, 2).reshape(w.shape)  # (H, D / 2, 2, C) -> (H * D, C)


def reorder(name, w, args, how):
    """The weight with our name `name`, through `how` (permute or unpermute) if it is wq or wk."""
    if name.endswith("wq.weight"):
        return how(w, args.n_heads)
    if name.endswith("wk.weight"):
        return how(w, args.n_kv_heads)
    return w


# --------------------------------------------------------------------------------------------------------
# in


def load_weights(path, tokenizer_path=""):
    """
    (args, weights, tok, stop_ids) of the model at `path`. InputError says what is wrong with it, or what in
    it model.py cannot represent.
    """
    if not os.path.exists(path):
        raise InputError(f"there is no checkpoint at {path}: train one with python train.py")
    load = load_hf if os.path.isdir(path) else load_llama2c if path.endswith(".bin") else load_ckpt
    args, weights, tok, stop_ids = load(path)
    if tokenizer_path:
        tok = Tokenizer(tokenizer_path)
    if tok and tok.n_words > args.vocab_size:
        raise InputError(f"{tok.name} has {tok.n_words} pieces, the model a vocabulary of {args.vocab_size}")
    return args, weights, tok, stop_ids


def without_padding(args, weights, tok):
    """
    (args, weights) without the ids that have no piece: a vocabulary may be padded, since matrices of round
    sizes are faster. These ids are never to be sampled. The other logits do not depend on them.
    """
    if not tok or tok.n_words == args.vocab_size:
        return args, weights
    tables = ("tok_embeddings.weight", "output.weight")
    cut = {name: weights[name][: tok.n_words] for name in tables if name in weights}
    print(f"ids without a piece, {tok.n_words} to {args.vocab_size - 1}, are left out")
    return dataclasses.replace(args, vocab_size=tok.n_words), weights | cut


def load_ckpt(path):
    """A checkpoint of ours or of llama2.c's. Mapped, where it can be: a tensor is read when it is used."""
    saved = read_checkpoint(path, mmap=zipfile.is_zipfile(path))
    args = Transformer.from_checkpoint(saved).args
    tok = Tokenizer(saved["tokenizer"]) if saved.get("tokenizer") else None
    return args, saved["model"], tok, check_stop_ids(saved.get("stop_ids", []), path)


def load_llama2c(path):
    """
    A .bin of version 0: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size,
    max_seq_len), then float32 weights in the order of weight_names(). vocab_size is negative if the output
    is not tied. After norm come RoPE's tables, which no program reads any more. The file has neither
    rope_theta nor norm_eps: run.c has 10000 and 1e-5 built in, our defaults.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        header = f.read(28).ljust(28, b"\0")
        magic, version = struct.unpack("<Ii", header[:8])
        if magic == LLAMA2C_MAGIC:
            raise InputError(f"{path} is a llama2.c .bin of version {version}: only version 0 is read")
        dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", header)
        block = 4 * (2 * dim * dim + 3 * dim * hidden)  # bytes of most of its matrices
        shape = (dim, layers, heads, kv_heads, abs(vocab), hidden)
        try:
            if min(dim, hidden, layers, kv_heads) < 1 or layers * block > size:
                raise ValueError
            args = ModelArgs(*shape, max_seq_len=context, tie_embeddings=vocab > 0)
        except ValueError:
            raise InputError(f"{path} is not a llama2.c .bin: its header describes no model") from None
        with torch.device("meta"):  # shapes without numbers
            shapes = {name: w.shape for name, w in Transformer(args).state_dict().items()}
        tables = 4 * context * (dim // heads)  # bytes of RoPE's cosines and sines
        names = [name for name, _, _ in weight_names(args)]
        expected = 28 + tables + sum(4 * shapes[name].numel() for name in names)
        if size != expected:
            raise InputError(f"{path} is not complete: it has {size} bytes, its header announces {expected}")
        weights = {}
        for name in names:
            w = np.fromfile(f, dtype="<f4", count=shapes[name].numel())
            weights[name] = torch.from_numpy(w).view(shapes[name])
            if name == "norm.weight":
                f.seek(tables, os.SEEK_CUR)
    return args, weights, None, []


def load_hf(folder):
    """
    A folder of transformers' LlamaForCausalLM. Whether the head is the embedding table is found out from the
    tensors: a config.json that says "tied" beside a head of its own, as after merging an adapter, is wrong.
    """
    args, config, stop_ids = read_config(folder)
    may_be_tied = config.tie_word_embeddings
    config.tie_word_embeddings = False  # or transformers would not read the head
    transformers = import_optional("transformers", f"{folder}, a folder,")
    transformers.logging.set_verbosity_error()  # what it would warn of is refused below
    try:
        model, info = transformers.LlamaForCausalLM.from_pretrained(
            folder, config=config, dtype="auto", output_loading_info=True, local_files_only=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # transformers' and safetensors' errors have no common class
        raise InputError(f"{folder}: the weights cannot be read: {first_sentence(error)}") from None
    missing = set(info["missing_keys"])
    no_head = may_be_tied and "lm_head.weight" in missing
    missing -= {"lm_head.weight"} if no_head else set()
    mismatched = {key[0] for key in info["mismatched_keys"]}
    problems = {"missing": missing, "unexpected": info["unexpected_keys"], "of another shape:": mismatched}
    for problem, names in problems.items():
        if names:  # transformers would fill in random numbers
            raise InputError(f"{folder} cannot become a checkpoint: {problem} {min(names)}")
    state = model.state_dict()
    tied = no_head or torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    args = dataclasses.replace(args, tie_embeddings=tied)
    weights = {ours: reorder(ours, state[hf], args, unpermute) for ours, hf, _ in weight_names(args)}
    paths = {"tokenizer.json": folder, "tokenizer.model": Path(folder, "tokenizer.model")}
    found = [path for name, path in paths.items() if Path(folder, name).exists()]
    return args, weights, Tokenizer(found[0]) if found else None, stop_ids


# --------------------------------------------------------------------------------------------------------
# out


def write_ckpt(args, weights, tok, stop_ids, path):
    """A checkpoint without an optimizer."""
    model = dict(iter_weights(args, weights))
    model.setdefault("output.weight", model["tok_embeddings.weight"])  # tied: torch.save writes it once
    saved = {"model": model, "model_args": model_args_dict(args), "tokenizer": tok.state() if tok else None}
    if stop_ids:
        saved["stop_ids"] = stop_ids
    with atomic_write(path, "wb") as f:
        torch.save(saved, f)
    if not tok:
        print("the source has no tokenizer: give one when sampling, python sample.py --tokenizer=PATH")


def write_hf(args, weights, tok, stop_ids, folder):
    """config.json, generation_config.json and model.safetensors, and the tokenizer's files."""
    transformers = import_optional("transformers", "--export_format=hf")
    safetensors = import_optional("safetensors", "--export_format=hf")
    special_ids = (tok.bos_id, tok.eos_id, tok.pad_id) if tok else (-1, -1, -1)
    bos, eos, pad = (i if i >= 0 else None for i in special_ids)
    stops = stop_ids or [i for i in dict.fromkeys((eos, bos)) if i is not None]  # where sample.py stops, too
    config = transformers.LlamaConfig(
        **{hf: getattr(args, ours) for ours, hf in CONFIG_NAMES.items()},
        rope_parameters={"rope_type": "default", "rope_theta": args.rope_theta},
        bos_token_id=bos,
        eos_token_id=stops or None,
        pad_token_id=eos if pad is None else pad,
    )
    config.rope_theta = args.rope_theta  # where transformers 4 looks for it
    state = {hf: reorder(ours, weights[ours], args, permute) for ours, hf, _ in weight_names(args)}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    with torch.device("meta"):  # without random weights
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    if tok and tok.n_words < args.vocab_size:  # ids without a piece are never sampled
        model.generation_config.suppress_tokens = list(range(tok.n_words, args.vocab_size))
    files = tokenizer_files(tok, args.max_seq_len)
    with replace_folder(folder) as new:
        try:
            model.save_pretrained(new)
        except safetensors.SafetensorError as error:  # of a full disk, say: it is no OSError
            raise InputError(f"{folder} cannot be written: {first_sentence(error)}") from None
        for name, content in files.items():
            Path(new, name).write_bytes(content)


def llama2c_header(a):
    """The seven numbers that both versions of .bin have."""
    if a.rope_theta != 10000.0 or not math.isclose(a.norm_eps, 1e-5):
        found = f"rope_theta={a.rope_theta:g} and norm_eps={a.norm_eps:g}"
        raise InputError(f"llama2.c has rope_theta=10000 and norm_eps=1e-5 built in, not {found}")
    return [a.dim, a.hidden_dim, a.n_layers, a.n_heads, a.n_kv_heads, a.vocab_size, a.max_seq_len]


def write_llama2c(args, weights, tok, stop_ids, path):
    """Version 0. load_llama2c says what stands where."""
    args, weights = without_padding(args, weights, tok)
    header = llama2c_header(args)
    if not args.tie_embeddings:
        header[5] *= -1
    tables = precompute_freqs_cis(args.dim // args.n_heads, args.max_seq_len, args.rope_theta)
    with tokenizer_beside(path, tok), atomic_write(path, "wb") as f:
        f.write(struct.pack("<7i", *header))
        for name, w in iter_weights(args, weights):
            f.write(w.float().numpy().tobytes())
            if name == "norm.weight":
                f.writelines(table.numpy().tobytes() for table in tables)


def write_llama2c_q80(args, weights, tok, stop_ids, path):
    """
    Version 2: 256 bytes of header, the norms in float32, then for each matrix its int8 numbers and its
    float32 scales, one for each group of neighbours in a row. runq.c multiplies group by group, so a group
    must divide dim and hidden_dim, the two lengths that rows have. stories260K's hidden_dim of 172 allows
    groups of 4, which take twice the bytes of groups of 64.
    """
    args, weights = without_padding(args, weights, tok)
    header = llama2c_header(args)
    group = math.gcd(64, args.dim, args.hidden_dim)
    with tokenizer_beside(path, tok), atomic_write(path, "wb") as f:
        head = struct.pack("<Ii7iBi", LLAMA2C_MAGIC, 2, *header, args.tie_embeddings, group)
        f.write(head.ljust(256, b"\0"))
        for _, w in sorted(iter_weights(args, weights), key=lambda item: item[1].dim()):  # the norms first
            if w.dim() == 1:
                f.write(w.float().numpy().tobytes())
            else:
                groups = w.float().reshape(-1, group)
                scale = groups.abs().amax(dim=1, keepdim=True) / 127  # 0 in a group of zeros
                numbers = (groups / scale.clamp(min=1e-30)).round().to(torch.int8)
                f.write(numbers.numpy().tobytes())
                f.write(scale.numpy().tobytes())
    print(f"groups of {group}: {1 + 4 / group:g} bytes per parameter")


def write_gguf(args, weights, tok, stop_ids, path, q8_0=False):
    """See gguf_export.py. GGUF pairs neighbours in RoPE as we do, so no row changes its place."""
    tensors = {gguf: weights[ours] for ours, _, gguf in weight_names(args)}
    gguf_export.write_gguf(path, args, tensors, tok, stop_ids, q8_0)


FORMATS = {  # the function that writes each format, and where to if --out is empty
    "hf": (write_hf, "output/hf"),
    "llama2c": (write_llama2c, "output/model.bin"),
    "llama2c_q80": (write_llama2c_q80, "output/model_q80.bin"),
    "gguf": (write_gguf, "output/model.gguf"),
    "gguf_q8_0": (functools.partial(write_gguf, q8_0=True), "output/model_q8_0.gguf"),
    "ckpt": (write_ckpt, "output/imported.pt"),
}


def output_path(path, sources, folder=False):
    """
    The file (or folder) to write, at the end of all links. InputError before any work where it cannot be
    written, or is one of the sources or in one.
    """
    path = os.path.realpath(path)
    if os.path.exists(path):
        for source in filter(os.path.exists, sources):
            if os.path.samefile(path, source) or Path(source).resolve() in Path(path).parents:
                raise InputError(f"--out={path} is the source itself, or in it: give another")
        if not (os.path.isdir if folder else os.path.isfile)(path):  # and no device, or pipe
            raise InputError(f"--out={path} is {'no folder' if folder else 'no file'}: give another")
    parent = next(parent for parent in Path(path).parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--out={path} cannot be written: {parent} is no folder to write into")
    if folder:
        check_folder(path)
    return path


def main():
    write, default_path = FORMATS[export_format]
    path = output_path(out or default_path, (checkpoint, tokenizer), export_format == "hf")
    loaded = load_weights(checkpoint, tokenizer)
    known = {"output.weight", *(name for name, _, _ in weight_names(loaded[0]))}
    if unknown := sorted(loaded[1].keys() - known):
        raise InputError(f"{checkpoint} has weights that no LLaMA has, {unknown[0]}: no format can hold them")
    try:
        write(*loaded, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    print(f"wrote {out or default_path}")


if __name__ == "__main__":
    override(globals())
    main()
