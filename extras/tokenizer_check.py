"""
Whether another program gives the ids of a tokenizer: asked before a tokenizer is written for it. Called by
export.py, gguf_export.py, hf_tokenizer.py and the page.

A vocabulary does not say how a text is cut into its pieces: each program has a rule of its own. The rules are
written out here: of llama2.c's run.c, of llama.cpp's "llama" and "gpt2" tokenizers, and of the page.
check_tokenizer() compares a rule with the tokenizer on texts that hold all its pieces.
"""

import contextlib
import itertools
import json
import math
import os
import re
import struct
from pathlib import Path

from configurator import InputError, atomic_write

# What tokenizers treat differently: spaces, line ends, digits, letters with accents, full-width forms,
# several scripts, emoji, and characters of every length that no vocabulary holds.
TEXTS = [
    "a", "a b", " a", "a ", "a  b   c", "  a  b  ", "\n", "a\n\n b\t\tc\r\n", "Aa AA aA ABC",
    "x1 12 123 1234567 3.14", "I'm don't we'll 's 'S 're", "e\u0301 é ﬁ ① Ａ１，。 ㍿ ½ ²",
    "中文字符，你好！三十三加二十", "한국어 日本語 русский ξ عربي",
    "🙂👩‍👩‍👧🏽🇩🇪", "\u00a0\u3000\u2003\u200b\ufeff\x01\x7f\x85",
    "\ue000\U0010ffff\u0800\u07ff", "...---!!!???", "<0x41><unk>",
    "".join(map(chr, range(33, 127))), "".join(map(chr, range(0x80, 0x100))),
    "".join(map(chr, range(0x700, 0x780))),
]  # fmt: skip
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONVERTER = "write --export_format=hf and give that to llama.cpp's own converter, convert_hf_to_gguf.py"


def check_tokenizer(tok, encode, target, advice="", prepare=str):
    """
    InputError unless encode(text), the target's rule, gives tok's ids. prepare(text) is the text of both:
    without what the target is known to treat differently.
    """
    for text in map(prepare, probe_texts(tok)):
        try:
            ids = encode(text)
        except (KeyError, IndexError):  # there is no piece for a byte
            ids = None
        if ids != tok.encode(text):
            advice = advice and f": {advice}"
            raise InputError(f"{tok.name} does not fit {target}, which makes other ids of {text!r}{advice}")


def probe_texts(tok):
    """TEXTS, and all pieces: a few in a row, with and without spaces between them."""
    if tok.kind == "tokenizers":
        pieces = [tok.tk.decode([i], skip_special_tokens=False) for i in range(tok.n_words)]
    else:
        pieces = [tok.piece(i).replace("▁", " ") for i in range(tok.n_words)]
    texts = list(TEXTS)
    for i in range(0, len(pieces), 4):
        texts += ["".join(pieces[i : i + 4]), " ".join(pieces[i + 3 : i : -1])]
    return texts


def one_space(text):
    """What most sentencepiece models do to spaces: several in a row count as one."""
    return re.sub(" +", " ", text).strip(" ")


def collapses_spaces(tok):
    return tok.kind == "sentencepiece" and "▁▁" not in tok.sp.normalize("a  a")


# --------------------------------------------------------------------------------------------------------
# rules


def merge_pairs(symbols, rank):
    """Merge the two neighbours of the lowest rank, the leftmost of equals, until no two have a rank."""
    symbols = list(symbols)
    while len(symbols) > 1:
        ranks = [rank(pair) for pair in itertools.pairwise(symbols)]
        best = min(range(len(ranks)), key=ranks.__getitem__)
        if ranks[best] == math.inf:
            break
        symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
    return symbols


def score_rank(id_of, scores):
    """rank() for merge_pairs: two neighbours whose union is a piece may merge, the highest score first."""

    def rank(pair):
        i = id_of.get("".join(pair))
        return math.inf if i is None else -scores[i]

    return rank


def merge_by_score(id_of, scores, prefix, unk_id=None):
    """
    llama.cpp's "llama" tokenizer: characters merge by score, and what is no piece in the end becomes bytes.
    The page does the same, and has unk_id where there are no bytes.
    """
    rank = score_rank(id_of, scores)

    def encode(text):
        ids = []
        for symbol in merge_pairs((" " * bool(prefix and text) + text).replace(" ", "▁"), rank):
            if symbol in id_of:
                ids.append(id_of[symbol])
            elif unk_id is None or "<0x00>" in id_of:
                ids += [id_of[f"<0x{byte:02X}>"] for byte in symbol.encode("utf-8")]
            elif ids[-1:] != [unk_id]:
                ids.append(unk_id)
        return ids

    return encode


def merge_in_words(id_of, merges, digits=""):
    """
    llama.cpp's "gpt2" tokenizer, which the page has, too: the text is cut into words, and in each the bytes
    are merged, the first in the list of merges first. digits: a pattern of characters that are words by
    themselves.
    """
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (digits, GPT2_WORDS) if pattern]
    words = pre_tokenizers.Sequence(splits)
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that are printed as themselves
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = dict(zip(shown, map(chr, shown))) | {byte: chr(256 + i) for i, byte in enumerate(hidden)}

    def encode(text):
        ids = []
        for word, _ in words.pre_tokenize_str(text):
            symbols = [letters[byte] for byte in word.encode("utf-8")]
            ids += [id_of[symbol] for symbol in merge_pairs(symbols, lambda pair: ranks.get(pair, math.inf))]
        return ids

    return encode


def run_c_rule(pieces, scores):
    """
    llama2.c's run.c: a space, then each character or, where it is no piece, its bytes, which are expected at
    the ids from 3 on; then neighbours merge by score.
    """
    id_of = {piece: i for i, piece in enumerate(pieces)}
    rank = score_rank(id_of, scores)

    def encode(text):
        symbols = []
        for char in " " * bool(text) + text:
            symbols += [char] if char in id_of else [pieces[3 + byte] for byte in char.encode("utf-8")]
        return [id_of[symbol] for symbol in merge_pairs(symbols, rank)]

    return encode


# --------------------------------------------------------------------------------------------------------
# what the programs read


def tokenizer_bin(tok):
    """
    The content of llama2.c's tokenizer.bin, little-endian: uint32 longest piece in bytes, then for each piece
    float32 score, uint32 length, its bytes. '▁' is written as the space that it stands for, BOS and EOS with
    the newlines that run.c expects. InputError where run.c would not give the ids of this tokenizer.
    """
    if tok.kind != "sentencepiece":
        raise InputError(f"llama2.c has a tokenizer like sentencepiece's, but {tok.name} is a tokenizer.json")
    if (tok.bos_id, tok.eos_id) != (1, 2):
        raise InputError(
            f"llama2.c has BOS 1 and EOS 2 built in, but {tok.name} has BOS {tok.bos_id} and EOS {tok.eos_id}"
        )
    pieces = [tok.piece(i).replace("▁", " ") for i in range(tok.n_words)]
    pieces[tok.bos_id] = "\n<s>\n"
    pieces[tok.eos_id] = "\n</s>\n"
    scores = [tok.sp.get_score(i) for i in range(tok.n_words)]
    prepare = one_space if collapses_spaces(tok) else str  # run.c keeps several spaces
    check_tokenizer(tok, run_c_rule(pieces, scores), "llama2.c", prepare=prepare)
    encoded = [piece.encode("utf-8") for piece in pieces]
    rows = [struct.pack("<fI", score, len(piece)) + piece for score, piece in zip(scores, encoded)]
    return struct.pack("<I", max(map(len, encoded))) + b"".join(rows)


@contextlib.contextmanager
def tokenizer_beside(path, tok):
    """
    Check the tokenizer, and write it when the model is written: tokenizer.bin beside model.bin, as llama2.c's
    are called, and story.tokenizer.bin beside story.bin. Another file of that name is never overwritten.
    """
    if not tok:
        print("no tokenizer.bin: the source has no tokenizer, give one with --tokenizer=PATH")
        yield
        return
    content = tokenizer_bin(tok)
    folder, name = os.path.split(path)
    stem = name.removesuffix(".bin")
    stem = stem.replace("model", "tokenizer", 1) if stem.startswith("model") else f"{stem}.tokenizer"
    beside = Path(folder, f"{stem}.bin")
    if beside.exists() and beside.read_bytes() != content:
        raise InputError(f"{beside} is there already, and is another tokenizer: give another --out")
    yield
    with atomic_write(beside, "wb") as f:
        f.write(content)


def byte_level_parts(tok, target, advice=""):
    """
    {merges, special, nfkc, digits} of a tokenizer.json as train_tokenizer.py writes it: all that
    gguf_export.py and tokenizer.js know. InputError names what is in it besides.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    saved = json.loads(tok.files["tokenizer.json"])
    model = saved["model"]
    normalizer = saved.get("normalizer")
    words = saved.get("pre_tokenizer") or {}
    digits = ""
    if words.get("type") == "Sequence" and len(words["pretokenizers"]) == 2:  # --split_digits
        split, words = words["pretokenizers"]
        digits = split.get("pattern", {}).get("Regex", "")
        if split.get("behavior") != "Isolated" or not re.fullmatch(r"\[[^\[\]\\^]+\]", digits):
            words = split  # which is not known
    added = saved["added_tokens"]
    odd = {
        f"a model of type {model['type']}": model["type"] != "BPE",
        f"the normalizer {(normalizer or {}).get('type')}": normalizer not in (None, {"type": "NFKC"}),
        f"the pre-tokenizer {words.get('type')}": words.get("type") != "ByteLevel",
        "words without a pattern": not words.get("use_regex", True),
        "a space before each text": words.get("add_prefix_space"),
        "ignore_merges": model.get("ignore_merges"),
        "dropout": model.get("dropout"),
        "affixes": model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"),
        "a vocabulary without all 256 bytes": not set(ByteLevel.alphabet()) <= set(model["vocab"]),
        "added tokens that are not special": not all(t["special"] and not t["normalized"] for t in added),
        "stripping": any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added),
    }
    for reason, applies in odd.items():
        if applies:
            advice = advice and f": {advice}"
            raise InputError(f"{tok.name} has {reason}, which {target} does not know{advice}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    added = sorted(tok.tk.get_added_tokens_decoder().items())  # the ids in the file may be others
    special = {token.content: i for i, token in added}
    return {"merges": merges, "special": special, "nfkc": normalizer is not None, "digits": digits}
