"""
Files that are not what reader.py reads: text in another encoding, what is no text, weights without args.

A text in a wrongly guessed encoding would be learned without a word. So none is converted by a guess: the
guess goes into the sentence that refuses the file, and --encoding decides.
"""

import codecs
import re
import sys

from configurator import InputError

PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"PAR1": "Parquet", b"%PDF": "PDF", b"ARROW1": "Arrow",
    b"SQLite": "SQLite", b"\xd0\xcf\x11\xe0": "a document of an old Word or Excel", b"\x89PNG": "PNG",
}  # fmt: skip
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
COMMON_CHINESE = "[的一是不了在人有我你他这中大来上个国们到说和为可以会要好]"


def decode(data, path, encoding):
    """Bytes in another encoding than UTF-8 as a text. InputError if they are UTF-8, or not in it."""
    refuse_packed(data, path)
    try:
        text = data.decode(encoding)
    except LookupError:
        raise InputError(f"--encoding={encoding}: Python knows no such encoding") from None
    except UnicodeError as error:
        raise InputError(f"{path} is not {encoding}: {error}") from None
    # UTF-8 decodes in most encodings, as other text. In UTF-16 half of the bytes of ASCII are 0.
    is_utf8 = data.decode(errors="ignore").encode() == data and data.count(0) * 4 <= len(data)
    is_the_same = data.isascii() and "a".encode(encoding) == b"a"
    if is_utf8 and not is_the_same and not codecs.lookup(encoding).name.startswith("utf-8"):
        raise InputError(f"{path} is utf-8, not {encoding}: leave out --encoding")
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    print(f"{path}, read as {encoding}, begins with {text[:20]!r}")  # only a reader sees that it is right
    return text


def refuse_packed(data, path):
    packed = [name for magic, name in PACKED.items() if data.startswith(magic)]
    if packed or data[257:262] == b"ustar":
        raise InputError(f"{path} is not text, but {(packed or ['tar'])[0]}: unpack or convert it first")


def refuse_bytes(data, path, strict):
    """
    InputError where bytes that are not all UTF-8 are in another encoding. It names Windows' UTF-16 and
    China's GB18030 (GBK). strict=False lets UTF-8 with a broken byte pass.
    """
    refuse_packed(data, path)
    guess = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "")
    high, valid = (len(re.findall(rb"[\x80-\xff]", d)) for d in (data, data.decode(errors="ignore").encode()))
    if data.count(0) * 6 > len(data):  # the other half of an ASCII character
        guess = guess or ("utf-16-be" if data[::2].count(0) > data[1::2].count(0) else "utf-16-le")
        guess = "" if "\0" in data.decode(guess, "ignore") else guess  # no text at all
    elif valid * 2 < high:
        texts = {name: data.decode(name, "ignore") for name in ("gb18030", "utf-16-le", "utf-16-be")}
        common = {len(re.findall(COMMON_CHINESE, text)): name for name, text in texts.items()}
        guess = guess or (common[max(common)] if high < max(common) * 60 else "")
    if guess or (strict and high > valid):
        seems = f", but seems to be {guess}" if guess else ""
        advice = f"convert it, or where there is that option give --encoding={guess or 'NAME'}"
        raise InputError(f"{path} is not utf-8{seems}: {advice}")


def find_model(checkpoint, path):
    """
    A checkpoint with "model" and "model_args" of one that is wrapped otherwise, or whose names have the
    prefixes of torch.compile and DDP, or of a state dict alone, as happy-llm saves it. The args are then read
    from the tensors. The number of heads is not in them; happy-llm's models have 16.
    """
    wrapped = checkpoint.keys() & {"model", "state_dict", "model_state_dict"}
    weights = checkpoint[min(wrapped)] if wrapped else checkpoint
    weights = {name.split("_orig_mod.")[-1].removeprefix("module."): w for name, w in weights.items()}
    if any(name.endswith("wte.weight") for name in weights):
        raise InputError(f"{path} is nanoGPT's: a GPT-2, which is another model than this one")
    if "model_args" in checkpoint:
        return checkpoint | {"model": weights}
    vocab_size, dim = weights["tok_embeddings.weight"].shape
    args = {"vocab_size": vocab_size, "dim": dim, "n_heads": 16, "max_seq_len": 512}
    args["n_layers"] = sum(name.endswith("ffn_norm.weight") for name in weights)
    args["n_kv_heads"] = 16 * len(weights["layers.0.attention.wk.weight"]) // dim
    how = 'for others save {"model": ..., "model_args": ...}'
    print(f"{path} does not say how many heads its model has: taking happy-llm's 16; {how}", file=sys.stderr)
    return {"model": weights, "model_args": args}
