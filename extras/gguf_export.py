"""
Writes a model and its tokenizer as one GGUF file, for llama.cpp, Ollama and LM Studio. Called by export.py.

Writes  matrices in float16 or Q8_0 (int8 with a float16 scale for each 32 neighbours in a row; where 32 does
        not divide the row they stay float16), norms in float32, and the tokenizer: pieces, their types,
        scores or merges, special ids, chat template.

llama.cpp has tokenizers of its own, and a GGUF file says which one and with what data. Two kinds fit ours:
"llama" merges by score, as sentencepiece does; "gpt2" merges bytes inside words, as tokenizer.json does.
"""

import json
import os

from configurator import InputError, atomic_write, import_optional

# How tokenizer.json cuts a text into words before any merge, and the name that llama.cpp has for it.
GPT2 = "ByteLevel"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    (GPT2,): "gpt-2",
    ("Digits", GPT2): "smollm",  # the digits of a number one by one
    (LLAMA3, "bytes"): "llama-bpe",
    (LLAMA3.replace("{1,3}", ""), "bytes"): "qwen2",
}


def write_gguf(path, args, tensors, tok, q8_0=False):
    """
    args: the ModelArgs. tensors: {GGUF's name: tensor} in the order in which they are written. They are
    converted one at a time, so that the memory of the largest is enough.
    """
    gguf = import_optional("gguf", "a GGUF file")
    if not tok:
        raise InputError("a GGUF file holds a tokenizer, and the source has none: give --tokenizer=PATH")
    kinds = {name: tensor_kind(gguf, w, q8_0) for name, w in tensors.items()}
    with atomic_write(path, "wb") as f:
        writer = gguf.GGUFWriter(f.name, "llama")  # opens the temporary file a second time
        writer.add_name(os.path.splitext(os.path.basename(path))[0])
        writer.add_context_length(args.max_seq_len)
        writer.add_embedding_length(args.dim)
        writer.add_block_count(args.n_layers)
        writer.add_feed_forward_length(args.hidden_dim)
        writer.add_head_count(args.n_heads)
        writer.add_head_count_kv(args.n_kv_heads)
        writer.add_layer_norm_rms_eps(args.norm_eps)
        writer.add_rope_dimension_count(args.dim // args.n_heads)
        writer.add_rope_freq_base(args.rope_theta)
        writer.add_vocab_size(args.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if q8_0 else gguf.LlamaFileType.MOSTLY_F16)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(gguf, writer, tok, args.vocab_size)
        for name, w in tensors.items():
            block, block_bytes = gguf.GGML_QUANT_SIZES[kinds[name]]
            n_bytes = w.numel() // block * block_bytes
            writer.add_tensor_info(name, w.shape, "float32", n_bytes, raw_dtype=kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, w in tensors.items():
            writer.write_tensor_data(gguf.quants.quantize(w.float().numpy(), kinds[name]))
        writer.close()


def tensor_kind(gguf, w, q8_0):
    """The GGML type of a tensor in the file."""
    if w.dim() == 1:
        return gguf.GGMLQuantizationType.F32
    if q8_0 and w.shape[1] % 32 == 0:
        return gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType.F16


# --------------------------------------------------------------------------------------------------------
# the tokenizer


def add_tokenizer(gguf, writer, tok, vocab_size):
    """The tokenizer's part of the metadata."""
    if tok.kind == "sentencepiece":
        tokens, types = add_sentencepiece(gguf, writer, tok, vocab_size)
    else:
        tokens, types = add_byte_level(gguf, writer, tok)
    # A model may have more ids than its tokenizer: matrices of round sizes are faster.
    spare = range(tok.n_words, vocab_size)
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in spare])
    writer.add_token_types(types + [gguf.TokenType.UNUSED for _ in spare])
    writer.add_add_bos_token(tok.bos_id >= 0 and not tok.template)  # a template writes its own
    writer.add_add_eos_token(False)
    for name in ("bos", "eos", "pad"):
        i = getattr(tok, f"{name}_id")
        if i >= 0:
            getattr(writer, f"add_{name}_token_id")(i)
    if 0 <= tok.eos_id != tok.bos_id >= 0:
        writer.add_eot_token_id(tok.bos_id)  # or llama.cpp would continue with the next story
    if tok.template:
        writer.add_chat_template(tok.template)


def add_sentencepiece(gguf, writer, tok, vocab_size):
    """(pieces, types) for llama.cpp's "llama" tokenizer. Unlike sentencepiece, it keeps runs of spaces."""
    sp = tok.sp
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_space_prefix(sp.normalize("a") == "▁a")
    scores = [sp.get_score(i) for i in range(tok.n_words)]
    writer.add_token_scores(scores + [0.0] * (vocab_size - tok.n_words))
    pieces = [tok.piece(i) for i in range(tok.n_words)]
    return pieces, [sentencepiece_type(gguf, sp, i) for i in range(tok.n_words)]


def sentencepiece_type(gguf, sp, i):
    if sp.is_unknown(i):
        return gguf.TokenType.UNKNOWN
    if sp.is_control(i):
        return gguf.TokenType.CONTROL
    if sp.is_unused(i):
        return gguf.TokenType.UNUSED
    if sp.is_byte(i):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def add_byte_level(gguf, writer, tok):
    """
    (pieces, types) for llama.cpp's "gpt2" tokenizer: merges of bytes, inside words that are cut in one of
    the ways it knows. It normalizes nothing.
    """
    saved = json.loads(tok.files["tokenizer.json"])
    if saved.get("normalizer"):
        kind = saved["normalizer"]["type"]
        print(f"warning: {tok.name} applies {kind}, llama.cpp does not: full-width forms differ there")
    steps = pre_tokenizer_steps(saved.get("pre_tokenizer"))
    if saved["model"]["type"] != "BPE" or steps not in PRE_TOKENIZERS:
        raise InputError(
            f"{tok.name} cuts texts into words in a way that llama.cpp does not know ({steps}); "
            "if there is a sentencepiece model, give that: --tokenizer=tokenizer.model"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[steps])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in saved["model"]["merges"]])
    types = [gguf.TokenType.NORMAL] * tok.n_words
    for token in saved["added_tokens"]:
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    return [tok.piece(i) or f"[PAD{i}]" for i in range(tok.n_words)], types


def pre_tokenizer_steps(saved):
    """The steps in which a tokenizer.json cuts words, as a key of PRE_TOKENIZERS."""
    if saved is None:
        return ()
    steps = saved["pretokenizers"] if saved["type"] == "Sequence" else [saved]
    names = []
    for step in steps:
        if step["type"] == "Split":
            names.append(step["pattern"].get("Regex", ""))
        elif step["type"] == "ByteLevel" and not step.get("use_regex", True):
            names.append("bytes")
        else:
            names.append(step["type"])
    return tuple(names)
