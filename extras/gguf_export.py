"""
Writes a model and its tokenizer as one GGUF file, for llama.cpp, Ollama and LM Studio. Called by export.py.

Writes  matrices in float16 or Q8_0 (int8 with a float16 scale for each 32 neighbours in a row; where 32 does
        not divide the row they stay float16), norms in float32, and the tokenizer: pieces, their types,
        scores or merges, special ids, chat template.

llama.cpp has tokenizers of its own, and a GGUF file says which one and with what data. Two kinds fit ours:
"llama" merges by score, as sentencepiece does; "gpt2" merges bytes inside words, as train_tokenizer.py's do.
Other tokenizers are refused: llama.cpp's own converter knows many of them.
"""

import os

from configurator import InputError, atomic_write
from extras import import_optional
from extras.tokenizer_check import (
    CONVERTER,
    byte_level_parts,
    check_tokenizer,
    collapses_spaces,
    merge_by_score,
    merge_in_words,
    one_space,
)

FLOAT16_MAX = 65504.0


def write_gguf(path, args, tensors, tok, stop_ids=(), q8_0=False):
    """
    args: the ModelArgs. tensors: {GGUF's name: tensor} in the order in which they are written. They are
    converted one at a time, so that the memory of the largest is enough.
    """
    gguf = import_optional("gguf", "a GGUF file")
    if not tok:
        raise InputError("a GGUF file holds a tokenizer, and the source has none: give --tokenizer=PATH")
    if tok.eos_id < 0:  # llama.cpp would take id 2, or 11
        raise InputError(f"a GGUF file names the token that ends a text, and {tok.name} has no EOS")
    missed = sorted({*stop_ids} - {tok.eos_id, tok.bos_id, tok.chat_end_id})
    if missed:
        print(f"warning: a GGUF file names two ends of a text, not more: llama.cpp may not stop at {missed}")
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
            if not w.isfinite().all() or w.abs().max() > FLOAT16_MAX:
                raise InputError(f"{name} holds numbers that float16 does not have")
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
    scores = [sp.get_score(i) for i in range(tok.n_words)]
    pieces = [tok.piece(i) for i in range(tok.n_words)]
    prefix = sp.normalize("a") == "▁a"
    rule = merge_by_score({piece: i for i, piece in enumerate(pieces)}, scores, prefix)
    check_tokenizer(tok, rule, "llama.cpp", CONVERTER, one_space if collapses_spaces(tok) else str)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_space_prefix(prefix)
    writer.add_token_scores(scores + [0.0] * (vocab_size - tok.n_words))
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
    (pieces, types) for llama.cpp's "gpt2" tokenizer: merges of bytes, inside words that are cut as GPT-2's
    are. It normalizes nothing.
    """
    parts = byte_level_parts(tok, "llama.cpp", CONVERTER)
    if parts["digits"]:
        raise InputError(f"{tok.name} splits digits, which llama.cpp does not do with it: {CONVERTER}")
    if parts["nfkc"]:
        print(f"warning: {tok.name} applies NFKC, llama.cpp does not: full-width forms differ there")
    pieces = [tok.piece(i) or f"[PAD{i}]" for i in range(tok.n_words)]
    rule = merge_in_words({piece: i for i, piece in enumerate(pieces)}, parts["merges"])
    check_tokenizer(tok, rule, "llama.cpp", CONVERTER, tok.normalize)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_merges(parts["merges"])
    types = [gguf.TokenType.NORMAL if tok.piece(i) else gguf.TokenType.UNUSED for i in range(tok.n_words)]
    for i in parts["special"].values():
        types[i] = gguf.TokenType.CONTROL
    return pieces, types
