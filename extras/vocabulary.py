"""
A tokenizer in the clothes of others, for extras/export.py: transformers' files, GGUF's arrays. (llama2.c's
tokenizer.bin is in tokenizer.py.)
"""

import json

from configurator import need

# How tokenizer.json cuts a text into words, before any merge, under the names that llama.cpp knows it by.
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


def stop_ids(tok):
    """Where a text ends: EOS, and BOS, with which the next would begin. sample.py stops at the same."""
    return [i for i in dict.fromkeys((tok.eos_id, tok.bos_id)) if i >= 0]


# --------------------------------------------------------------------------------------------------------
# transformers


def transformers_files(tok, context):
    """{name: bytes} of the files with which AutoTokenizer gives tok's ids."""
    if tok.kind == "tokenizers":
        return tok.files
    ids = {"bos": tok.bos_id, "eos": tok.eos_id, "unk": tok.sp.unk_id(), "pad": tok.pad_id}
    config = {f"{k}_token": tok.piece(i) for k, i in ids.items() if i >= 0}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    config["clean_up_tokenization_spaces"] = False
    config["split_special_tokens"] = True  # "<s>" in a text is three letters, not BOS
    config = json.dumps(config, indent=1).encode()
    return {"tokenizer.json": tokenizer_json(tok), "tokenizer_config.json": config}


def tokenizer_json(tok):
    """
    A sentencepiece BPE as tokenizer.json. Sentencepiece stores pieces with scores, and no merges: any two
    neighbours whose union is a piece may merge, the union of the highest score first. So the list of
    merges is every cut of every piece into two pieces, in the order of the scores.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    sp, ids = tok.sp, range(tok.n_words)
    vocab = {sp.id_to_piece(i): i for i in ids}
    special = [i for i in ids if sp.is_control(i) or sp.is_unknown(i)]
    plain = [i for i in ids if i not in special and not sp.is_unused(i) and not sp.is_byte(i)]
    pieces = [sp.id_to_piece(i) for i in sorted(plain, key=sp.get_score, reverse=True)]
    merges = [(p[:k], p[k:]) for p in pieces for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]
    bpe = models.BPE(vocab, merges, unk_token=sp.id_to_piece(sp.unk_id()), fuse_unk=True,
                     byte_fallback=any(map(sp.is_byte, ids)))  # fmt: skip
    fast = Tokenizer(bpe)
    before, after = spaces(sp)
    fast.normalizer = normalizers.Sequence(before)
    letters = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    fast.decoder = decoders.Sequence([*letters, *after])
    fast.add_special_tokens([AddedToken(sp.id_to_piece(i), normalized=False) for i in special])
    if tok.bos_id >= 0:  # tokenizer(text) begins with BOS, as the model's texts do
        bos = tok.piece(tok.bos_id)
        first = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tok.bos_id)])
        fast.post_processor = first
    probe = " ".join(pieces).replace("▁", " ") + "\n\t  中文 é 🙂 ﬁ  "
    if fast.encode(probe, add_special_tokens=False).ids != sp.encode(probe):
        raise ValueError(f"{tok.name} is more than a byte pair encoding: no tokenizer.json gives its ids")
    return fast.to_str().encode("utf-8")


def spaces(sp):
    """
    (normalizers, decoders) for what a sentencepiece model does to spaces: '▁' stands for one, a text
    begins with one, and (not in Llama 2's) several count as one. The model file says which in its
    protobuf; it is shorter to try.
    """
    from tokenizers import Regex, decoders, normalizers

    removes_extra, adds_first = "▁▁" not in sp.normalize("a  a"), sp.normalize("a") == "▁a"
    before, after = [normalizers.Replace(" ", "▁")], []
    if adds_first:
        before, after = [normalizers.Prepend("▁"), *before], [decoders.Strip(" ", 1, 0)]
    if removes_extra:  # only U+0020 is meant: line breaks and tabs stay
        head = normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")
        before = [*head, *before, normalizers.Replace(Regex(r"▁+\z"), "")]
        after = [decoders.Strip(" ", 2**31, 0)]  # as many as there are
    return before, after


# --------------------------------------------------------------------------------------------------------
# GGUF


def add_to_gguf(writer, tok, vocab_size):
    """The tokenizer's part of GGUF's metadata: pieces, their kinds, scores or merges, special ids."""
    add = add_sentencepiece if tok.kind == "sentencepiece" else add_byte_level
    tokens, types, scores = add(writer, tok)
    # A model may have more ids than its tokenizer: matrices of round sizes are faster.
    spare = range(tok.n_words, vocab_size)
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in spare])
    writer.add_token_types(types + [need("gguf", "GGUF").TokenType.UNUSED for _ in spare])
    if scores:
        writer.add_token_scores(scores + [0.0 for _ in spare])
    writer.add_add_bos_token(tok.bos_id >= 0 and not tok.template)  # a template writes its own
    writer.add_add_eos_token(False)
    for name in ("bos", "eos", "pad"):
        i = getattr(tok, f"{name}_id")
        if i >= 0:
            getattr(writer, f"add_{name}_token_id")(i)
    for i in stop_ids(tok)[1:]:  # BOS as the "end of turn", or llama.cpp goes on into the next story
        writer.add_eot_token_id(i)
    if tok.template:
        writer.add_chat_template(tok.template)


def add_sentencepiece(writer, tok):
    """llama.cpp's "llama" tokenizer merges by score, as sentencepiece does, but keeps runs of spaces."""
    T = need("gguf", "GGUF").TokenType
    sp, ids = tok.sp, range(tok.n_words)
    types = [
        T.UNKNOWN if sp.is_unknown(i) else T.CONTROL if sp.is_control(i) else T.UNUSED if sp.is_unused(i)
        else T.BYTE if sp.is_byte(i) else T.NORMAL
        for i in ids
    ]  # fmt: skip
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_space_prefix(sp.normalize("a") == "▁a")
    return [tok.piece(i) for i in ids], types, [sp.get_score(i) for i in ids]


def add_byte_level(writer, tok):
    """
    llama.cpp's "gpt2" tokenizer: merges of bytes, inside words that are cut in one of the ways it knows. It
    normalizes nothing: full-width letters, which our NFKC folds, have other ids there.
    """
    T = need("gguf", "GGUF").TokenType
    saved = json.loads(tok.files["tokenizer.json"])
    way = pre_tokenizer(saved)
    if saved["model"]["type"] != "BPE" or way not in PRE_TOKENIZERS:
        raise ValueError(
            f"{tok.name} cuts texts into words in a way that llama.cpp does not know ({way}); "
            "where there is a sentencepiece model, give that: --tokenizer=tokenizer.model"
        )
    added = {t["id"]: T.CONTROL if t["special"] else T.USER_DEFINED for t in saved["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[way])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in saved["model"]["merges"]])
    ids = range(tok.n_words)
    return [tok.piece(i) or f"[PAD{i}]" for i in ids], [added.get(i, T.NORMAL) for i in ids], None


def pre_tokenizer(saved):
    """The steps in which a tokenizer.json cuts words, as a key of PRE_TOKENIZERS."""
    step = saved.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    return tuple(
        s["pattern"].get("Regex", "") if s["type"] == "Split"
        else "bytes" if s["type"] == "ByteLevel" and not s.get("use_regex", True)
        else s["type"]
        for s in steps
    )  # fmt: skip
