"""
Text to token ids and back.

Reads  a tokenizer of one of two kinds: a sentencepiece model (data/tok4096.model, made by tinystories.py)
or a folder
       that holds tokenizer.json (tokenizer_k/, made by train_tokenizer.py; any model's folder from a hub)
Writes with --export=True, llama2.c's tokenizer.bin beside the sentencepiece model

    python tokenizer.py --tokenizer=data/tok4096.model --text="Hello, world!"    the pieces and their ids, side by side
    python tokenizer.py --tokenizer=data/tok4096.model --export=True             data/tok4096.bin, for llama2.c

A token is a frequent piece of text: a word, a syllable, a letter. A word-level vocabulary would need an
entry for each word ever written, a character-level one would make sequences long; byte pair encoding
(Sennrich et al. 2016, arXiv:1508.07909) starts from characters and merges the most frequent pair of
neighbours until the vocabulary is full. What no merge covers falls back to bytes, so that every text has
an encoding.
"""

import hashlib
import json
import os
import struct

tokenizer = "data/tok4096.model"  # a sentencepiece .model, or a folder that holds tokenizer.json
text = "Hello, world!"  # what to show
export = False  # write llama2.c's tokenizer.bin instead

FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Tokenizer:
    """
    Tokenizer("data/tok4096.model").encode("Hello, world!", bos=True, eos=True) -> [1, 346, 2233, 4010,
    1475, 4021, 2]

    n_words   vocabulary size: ids are 0 .. n_words - 1
    bos_id    begins a text; eos_id ends one (or a turn of a chat); pad_id fills up. -1 where the tokenizer has none
    files     {name: bytes} of what it was made from. Checkpoints carry it, so that nobody samples with another tokenizer
    """

    def __init__(self, tokenizer_model=None):
        """tokenizer_model: a path as above; or {"kind": "sentencepiece" | "tokenizers", "files": {name: bytes}}."""
        if not isinstance(tokenizer_model, dict):
            tokenizer_model = read_files(tokenizer_model or tokenizer)
        self.kind, self.files = tokenizer_model["kind"], tokenizer_model["files"]
        self.name = tokenizer_model.get("name", "the checkpoint's tokenizer")
        self.template = None
        if self.kind == "sentencepiece":
            self._open_sentencepiece()
        else:
            self._open_folder()

    def _open_sentencepiece(self):
        import sentencepiece

        try:
            self.sp = sentencepiece.SentencePieceProcessor(model_proto=next(iter(self.files.values())))
        except RuntimeError:
            raise ValueError(f"{self.name} is not a sentencepiece model") from None
        self.n_words = self.sp.vocab_size()
        self.bos_id, self.eos_id, self.pad_id = self.sp.bos_id(), self.sp.eos_id(), self.sp.pad_id()

    def _open_folder(self):
        import tokenizers

        try:
            self.tk = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))
            config = json.loads(self.files.get("tokenizer_config.json", b"{}"))
        except Exception as error:  # the Rust library raises bare Exceptions
            raise ValueError(f"{self.name}: not a tokenizer ({error})") from None
        self.n_words = self.tk.get_vocab_size(with_added_tokens=True)
        self.bos_id, self.eos_id, self.pad_id = (
            self._special(config.get(k)) for k in ("bos_token", "eos_token", "pad_token")
        )
        self.template = config.get("chat_template")
        if "chat_template.jinja" in self.files:  # where transformers 5 puts it
            self.template = self.files["chat_template.jinja"].decode("utf-8")
        self.special_tokens = {
            k: t["content"] if isinstance(t, dict) else t
            for k, t in config.items()
            if k.endswith("_token") and t and k != "add_bos_token"
        }

    def _special(self, token):
        token = token["content"] if isinstance(token, dict) else token
        found = self.tk.token_to_id(token) if token else None
        return -1 if found is None else found

    def encode(self, s: str, bos: bool = False, eos: bool = False) -> list[int]:
        """A text's ids, with bos_id before and eos_id after them where asked (and where the tokenizer has them)."""
        if self.kind == "sentencepiece":
            ids = self.sp.encode(s)
        else:
            ids = self.tk.encode(s, add_special_tokens=False).ids
        return [self.bos_id] * (bos and self.bos_id >= 0) + ids + [self.eos_id] * (eos and self.eos_id >= 0)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of many texts, without BOS and EOS; one call into the library, which saves a third of the time."""
        if self.kind == "sentencepiece":
            return self.sp.encode(texts, num_threads=1)
        return [e.ids for e in self.tk.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special tokens (BOS, EOS) have none."""
        outside = [i for i in ids if not 0 <= i < self.n_words]
        if outside:
            raise ValueError(f"id {outside[0]} is outside the vocabulary of {self.n_words} of {self.name}")
        return self.sp.decode(ids) if self.kind == "sentencepiece" else self.tk.decode(ids)

    def piece(self, i: int) -> str:
        """The piece of one id as the vocabulary spells it ('▁' or 'Ġ' is the space before a word)."""
        return self.sp.id_to_piece(i) if self.kind == "sentencepiece" else self.tk.id_to_token(i)

    def state(self) -> dict:
        """Plain types for a checkpoint; Tokenizer(state) is this tokenizer again."""
        return {"kind": self.kind, "files": self.files}

    def fingerprint(self) -> str:
        """The same for two tokenizers if they give the same ids: what shards and checkpoints compare."""
        main = "tokenizer.json" if self.kind == "tokenizers" else next(iter(self.files))
        return hashlib.sha256(self.files[main]).hexdigest()[:16]


def read_files(path):
    """{"kind", "name", "files"} of a tokenizer on disk."""
    if os.path.isdir(path):
        names = [name for name in FOLDER_FILES if os.path.exists(os.path.join(path, name))]
        if "tokenizer.json" not in names:
            raise ValueError(f"no tokenizer.json in the folder {path}")
        kind, paths = "tokenizers", [os.path.join(path, name) for name in names]
    elif os.path.exists(path):
        kind, names, paths = "sentencepiece", ["tokenizer.model"], [path]
    else:
        raise ValueError(f"no tokenizer at {path}: make one with python tinystories.py train_vocab")
    files = {}
    for name, p in zip(names, paths):
        with open(p, "rb") as f:
            files[name] = f.read()
    return {"kind": kind, "name": path, "files": files}


def llama2c_bytes(tok: Tokenizer) -> bytes:
    """
    llama2.c's tokenizer.bin, little-endian: uint32 longest piece in bytes, then for each piece float32
    score, uint32 length, its bytes. '▁' is written as the space that it stands for, BOS and EOS with the
    newlines that run.c expects.
    """
    if tok.kind != "sentencepiece":
        raise ValueError(f"{tok.name}: llama2.c reads sentencepiece vocabularies only")
    pieces = [tok.piece(i).replace("▁", " ") for i in range(tok.n_words)]
    pieces[tok.bos_id], pieces[tok.eos_id] = "\n<s>\n", "\n</s>\n"
    pieces = [p.encode("utf-8") for p in pieces]
    table = (struct.pack("<fI", tok.sp.get_score(i), len(p)) + p for i, p in enumerate(pieces))
    return struct.pack("<I", max(map(len, pieces))) + b"".join(table)


if __name__ == "__main__":
    from configurator import atomic_write, override

    override(globals())
    tok = Tokenizer(tokenizer)
    if export:
        out = os.path.splitext(tokenizer)[0] + ".bin"
        with atomic_write(out, "wb") as f:
            f.write(llama2c_bytes(tok))
        print(f"wrote {out}: {tok.n_words} pieces")
    else:
        ids = tok.encode(text, bos=True, eos=True)
        for i in ids:
            print(f"{i:>6}  {tok.piece(i)}")
        print(f"{len(ids)} tokens for {len(text.encode())} bytes: {ids}")
        print(f"decoded: {tok.decode(ids)}")
