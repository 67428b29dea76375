"""
Out to where people run models, and in from there.

Reads  a checkpoint of ours, a folder of transformers' (LlamaForCausalLM), or a .bin of llama2.c's
Writes one of

    hf           a folder that AutoModelForCausalLM and AutoTokenizer load
    llama2c      .bin of version 0, float32, for llama2.c's run.c; tokenizer.bin beside it
    llama2c_q80  .bin of version 2, int8, for its runq.c; tokenizer.bin beside it
    gguf         float16, for llama.cpp, Ollama and LM Studio; needs pip install gguf
    gguf_q8_0    the same with int8 matrices
    ckpt         a checkpoint for sample.py, and for train.py --init_from=PATH

    python -m extras.export --format=hf                           output/ckpt.pt to output/hf
    python -m extras.export --format=gguf_q8_0 --out=story.gguf   then: llama-cli -m story.gguf
    python -m extras.export --format=ckpt --checkpoint=stories15M.bin --tokenizer=tokenizer.model
    python -m extras.export --format=ckpt --checkpoint=SmolLM2-135M      to output/imported.pt

weights.py makes any of the three sources one mapped set of tensors and walks over it; a format is what is
done at each step of the walk. One tensor is in memory at a time, in its own dtype where the format has it.
"""

import contextlib
import functools
import json
import math
import os
import shutil
import struct

import torch

import model as M
from checkpoints import plain_args, save_checkpoint
from configurator import atomic_write, need, override
from documents import write_json
from extras.vocabulary import add_to_gguf, stop_ids, transformers_files
from extras.weights import LLAMA2C_MAGIC, SAFETENSORS_DTYPES, names, open_source, read_safetensors, walk
from tokenizer import FOLDER_FILES, llama2c_bytes

checkpoint = "output/ckpt.pt"  # what to convert
format = "hf"  # hf | llama2c | llama2c_q80 | gguf | gguf_q8_0 | ckpt: into what
out = ""  # where to; empty: into output/, see OUT
tokenizer = ""  # a tokenizer, where the source holds none

OUT = {
    "hf": "output/hf", "llama2c": "output/model.bin", "llama2c_q80": "output/model_q80.bin",
    "gguf": "output/model.gguf", "gguf_q8_0": "output/model_q8_0.gguf", "ckpt": "output/imported.pt",
}  # fmt: skip


def raw(tensor):
    """A tensor's bytes as they lie in memory. By way of uint8, since numpy has no bfloat16."""
    return tensor.contiguous().view(torch.uint8).numpy()


# --------------------------------------------------------------------------------------------------------
# transformers


def write_hf(source, folder):
    """config.json, generation_config.json, model.safetensors, and the tokenizer's files."""
    a, tok = source.args, source.tokenizer
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": a.vocab_size,
        "hidden_size": a.dim, "intermediate_size": a.hidden_dim, "num_hidden_layers": a.n_layers,
        "num_attention_heads": a.n_heads, "num_key_value_heads": a.n_kv_heads, "hidden_act": "silu",
        "max_position_embeddings": a.max_seq_len, "rms_norm_eps": a.norm_eps, "rope_theta": a.rope_theta,
        "tie_word_embeddings": a.tie_embeddings, "attention_bias": False, "mlp_bias": False,
        "torch_dtype": str(source.weights["tok_embeddings.weight"].dtype).removeprefix("torch."),
    }  # fmt: skip
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tok:
        stops = stop_ids(tok)  # generate() takes a list
        ids = {"bos_token_id": tok.bos_id if tok.bos_id >= 0 else None, "eos_token_id": stops or None,
               "pad_token_id": tok.pad_id if tok.pad_id >= 0 else next(iter(stops), None)}  # fmt: skip
    with new_folder(folder) as new:
        for name, content in (transformers_files(tok, a.max_seq_len) if tok else {}).items():
            with atomic_write(os.path.join(new, name), "wb") as f:
                f.write(content)
        write_json(os.path.join(new, "config.json"), config | ids)
        write_json(os.path.join(new, "generation_config.json"), ids)
        theirs = {ours: hf for ours, hf, _ in names(a)}
        write_safetensors(os.path.join(new, "model.safetensors"), source, theirs, halves=True)


@contextlib.contextmanager
def new_folder(path):
    """A folder to fill; when it is whole it takes the place of `path`, if that is an export or nothing."""
    known = {"config.json", "generation_config.json", "model.safetensors", *FOLDER_FILES}
    others = set(os.listdir(path)) - known if os.path.isdir(path) else ()
    if others:
        raise ValueError(f"{path} holds {min(others)}, which is not of an export: give another --out")
    new = os.path.normpath(path) + ".tmp"
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    try:
        yield new
        shutil.rmtree(path, ignore_errors=True)
        os.replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_safetensors(path, source, theirs, halves):
    """
    The weights under the names `theirs`, {ours: theirs}: see weights.read_safetensors for the format. By
    hand, since the package's writer wants all tensors at once.
    """
    dtypes = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    at, header = 0, {"__metadata__": {"format": "pt"}}
    for ours, name in theirs.items():
        w = source.weights[ours]
        end = at + w.nbytes
        header[name] = {"dtype": dtypes[w.dtype], "shape": list(w.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    with atomic_write(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, w in walk(source, halves):
            f.write(raw(w))


# --------------------------------------------------------------------------------------------------------
# llama2.c


def llama2c_header(source):
    """The seven numbers that both versions have."""
    a = source.args
    if a.rope_theta != 10000.0 or not math.isclose(a.norm_eps, 1e-5):
        found = f"rope_theta={a.rope_theta:g} and norm_eps={a.norm_eps:g}"
        raise ValueError(f"llama2.c has rope_theta=10000 and norm_eps=1e-5 built in, not {found}")
    return [a.dim, a.hidden_dim, a.n_layers, a.n_heads, a.n_kv_heads, a.vocab_size, a.max_seq_len]


def write_llama2c(source, path):
    """Version 0; weights.read_llama2c says what lies where."""
    a, header = source.args, llama2c_header(source)
    if not a.tie_embeddings:
        header[5] *= -1
    with atomic_write(path, "wb") as f:
        f.write(struct.pack("<7i", *header))
        for name, w in walk(source):
            f.write(raw(w.float()))
            if name == "norm.weight":
                for table in M.rope_tables(a.dim // a.n_heads, a.max_seq_len, a.rope_theta):
                    f.write(raw(table))
    write_tokenizer_bin(source, path)


def write_llama2c_q80(source, path):
    """
    Version 2: 256 bytes of header, the norms in float32, then of each matrix the int8 numbers and the
    float32 scales, one for each group of neighbours in a row. runq.c multiplies group by group, so that a
    group must divide dim and hidden_dim, the two lengths that rows have: stories260K's 172 leaves 4, and
    so twice the bytes of groups of 64.
    """
    a, header = source.args, llama2c_header(source)
    group = math.gcd(64, a.dim, a.hidden_dim)
    with atomic_write(path, "wb") as f:
        head = struct.pack("<Ii7iBi", LLAMA2C_MAGIC, 2, *header, a.tie_embeddings, group)
        f.write(head.ljust(256, b"\0"))
        for matrices in (False, True):
            for _, w in walk(source):
                if not matrices and w.dim() == 1:
                    f.write(raw(w.float()))
                elif matrices and w.dim() == 2:
                    groups = w.float().reshape(-1, group)
                    scale = groups.abs().amax(dim=1, keepdim=True) / 127  # 0 in a group of zeros
                    f.write(raw((groups / scale.clamp(min=1e-30)).round().to(torch.int8)))
                    f.write(raw(scale))
    print(f"groups of {group}: {1 + 4 / group:g} bytes a weight")
    write_tokenizer_bin(source, path)


def write_tokenizer_bin(source, path):
    tok = source.tokenizer
    if not tok or tok.kind != "sentencepiece":
        print("no tokenizer.bin: llama2.c reads sentencepiece vocabularies only, and the source holds none")
        return
    with atomic_write(os.path.join(os.path.dirname(path), "tokenizer.bin"), "wb") as f:
        f.write(llama2c_bytes(tok))


# --------------------------------------------------------------------------------------------------------
# GGUF


def write_gguf(source, path, q8_0=False):
    """
    GGUF's llama architecture. It pairs neighbours in RoPE as we do, so that no row changes its place.
    Matrices are float16 or Q8_0 (blocks of 32 in a row; a row that 32 does not divide stays float16),
    norms float32.
    """
    gguf = need("gguf", "--format=gguf")
    a = source.args
    if not source.tokenizer:
        raise ValueError("a GGUF file holds a tokenizer, and the source has none: give --tokenizer=PATH")
    kinds = gguf.GGMLQuantizationType

    def kind_of(w):
        return kinds.F32 if w.dim() == 1 else kinds.Q8_0 if q8_0 and w.shape[1] % 32 == 0 else kinds.F16

    with atomic_write(path, "wb") as f:
        writer = gguf.GGUFWriter(f.name, "llama")
        writer.add_name(os.path.splitext(os.path.basename(path))[0])
        writer.add_context_length(a.max_seq_len)
        writer.add_embedding_length(a.dim)
        writer.add_block_count(a.n_layers)
        writer.add_feed_forward_length(a.hidden_dim)
        writer.add_head_count(a.n_heads)
        writer.add_head_count_kv(a.n_kv_heads)
        writer.add_layer_norm_rms_eps(a.norm_eps)
        writer.add_rope_dimension_count(a.dim // a.n_heads)
        writer.add_rope_freq_base(a.rope_theta)
        writer.add_vocab_size(a.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if q8_0 else gguf.LlamaFileType.MOSTLY_F16)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_to_gguf(writer, source.tokenizer, a.vocab_size)
        for ours, _, name in names(a):
            w, kind = source.weights[ours], kind_of(source.weights[ours])
            block, size = gguf.GGML_QUANT_SIZES[kind]
            writer.add_tensor_info(name, w.shape, "float32", w.numel() // block * size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, w in walk(source):
            writer.write_tensor_data(gguf.quants.quantize(w.float().numpy(), kind_of(w)))
        writer.close()


# --------------------------------------------------------------------------------------------------------
# ours


def write_ckpt(source, path):
    """
    A checkpoint without an optimizer. torch.save wants all tensors at once; so the walk goes into a
    scratch file, and torch.save gets that one mapped.
    """
    tok, scratch = source.tokenizer, path + ".scratch.tmp"
    try:
        write_safetensors(scratch, source, {ours: ours for ours, *_ in names(source.args)}, halves=False)
        weights = read_safetensors(scratch)
        weights.setdefault("output.weight", weights["tok_embeddings.weight"])  # tied: saved once
        state = {"model": weights, "model_args": plain_args(source.args), "config": {}, "iter_num": 0,
                 "best_val_loss": math.inf, "tokenizer": tok.state() if tok else None}  # fmt: skip
        save_checkpoint(state, path)
    finally:
        if os.path.exists(scratch):
            os.remove(scratch)
    if not tok:
        print("there was no tokenizer: give it when sampling, python sample.py --tokenizer=PATH")
    elif tok.n_words != source.args.vocab_size:
        print(f"{tok.n_words} pieces, but {source.args.vocab_size} ids: sample.py wants as many of both")


WRITERS = {
    "hf": write_hf, "llama2c": write_llama2c, "llama2c_q80": write_llama2c_q80, "gguf": write_gguf,
    "gguf_q8_0": functools.partial(write_gguf, q8_0=True), "ckpt": write_ckpt,
}  # fmt: skip

if __name__ == "__main__":
    override(globals())
    out = out or OUT[format]
    if os.path.exists(out) and os.path.exists(checkpoint) and os.path.samefile(out, checkpoint):
        raise ValueError(f"--out={out} is what is read: give another")
    source = open_source(checkpoint, tokenizer)
    WRITERS[format](source, out)
    print(f"wrote {out}")
