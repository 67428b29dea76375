"""
Converts a tokenizer to the files of transformers, so that AutoTokenizer gives the same ids. Called by
export.py.

A byte-level tokenizer of ours is such files already. A sentencepiece model becomes a tokenizer.json, which
says in other terms what the model does: merges where sentencepiece has scores, steps of a normalizer where it
has switches. Every conversion ends with a comparison of the two (tokenizer_check.py).
"""

import json

from extras.tokenizer_check import check_tokenizer


def tokenizer_files(tok, context):
    """{name: bytes} of the files with which AutoTokenizer gives tok's ids."""
    if not tok:
        return {}
    if tok.kind == "tokenizers":
        return tok.files
    ids = {"bos": tok.bos_id, "eos": tok.eos_id, "unk": tok.sp.unk_id(), "pad": tok.pad_id}
    config = {f"{key}_token": tok.piece(i) for key, i in ids.items() if i >= 0}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_max_length"] = context
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

    sp = tok.sp
    ids = range(tok.n_words)
    vocab = {sp.id_to_piece(i): i for i in ids}
    special = [i for i in ids if sp.is_control(i) or sp.is_unknown(i)]
    plain = [i for i in ids if i not in special and not sp.is_unused(i) and not sp.is_byte(i)]
    pieces = [sp.id_to_piece(i) for i in sorted(plain, key=sp.get_score, reverse=True)]
    cuts = [(p[:k], p[k:]) for p in pieces for k in range(1, len(p))]
    merges = [(left, right) for left, right in cuts if left in vocab and right in vocab]
    unknown = sp.id_to_piece(sp.unk_id())
    has_bytes = any(map(sp.is_byte, ids))
    fast = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
    normalize_spaces, restore_spaces = space_rules(sp)
    fast.normalizer = normalizers.Sequence(normalize_spaces)
    letters = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence(letters + restore_spaces)
    fast.add_special_tokens([AddedToken(sp.id_to_piece(i), normalized=False) for i in special])
    if tok.bos_id >= 0:  # tokenizer(text) begins with BOS, as the model's texts do
        bos = tok.piece(tok.bos_id)
        template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tok.bos_id)])
        fast.post_processor = template
    fast.encode_special_tokens = True  # as split_special_tokens in tokenizer_config.json
    check_tokenizer(tok, lambda text: fast.encode(text, add_special_tokens=False).ids, "transformers")
    return fast.to_str().encode("utf-8")


def space_rules(sp):
    """
    (normalizers, decoders) for what a sentencepiece model does to spaces: '▁' stands for one, a text
    begins with one, and (not in Llama 2's) several count as one. The model's protobuf says which; trying
    it is shorter than reading that.
    """
    from tokenizers import Regex, decoders, normalizers

    replace = normalizers.Replace(" ", "▁")
    if "▁▁" not in sp.normalize("a  a"):  # several count as one; line breaks and tabs stay as they are
        head = [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        tail = [normalizers.Replace(Regex(r"▁+\z"), "")]
        restore = [decoders.Strip(" ", 2**31, 0)]  # as many as there are
    else:
        head, tail, restore = [], [], []
    if sp.normalize("a") == "▁a":
        head.append(normalizers.Prepend("▁"))
        restore = restore or [decoders.Strip(" ", 1, 0)]
    return [*head, replace, *tail], restore
