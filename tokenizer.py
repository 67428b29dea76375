"""
Text to token ids and back.

Reads  a tokenizer of one of two kinds: a sentencepiece model (data/tok4096.model, made by tinystories.py)
or a folder
       that holds tokenizer.json (tokenizer_k/, made by train_tokenizer.py; any model's folder from a hub)
Writes with --export=True, llama2.c's tokenizer.bin beside the sentencepiece model

    python tokenizer.py --tokenizer=data/tok4096.model --text="Hello, world!"     pieces and ids, side by side
    python tokenizer.py --tokenizer=data/tok4096.model --export=True       data/tok4096.bin, for llama2.c

A token is a frequent piece of text: a word, a syllable, a letter. A word-level vocabulary would need an
entry for each word ever written, a character-level one would make sequences long; byte pair encoding
(Sennrich et al. 2016, arXiv:1508.07909) starts from characters and merges the most frequent pair of
neighbours until the vocabulary is full. What no merge covers falls back to bytes, so that every text has
an encoding.
"""

import hashlib
import json
import os
import re
import struct
from bisect import bisect_left

tokenizer = "data/tok4096.model"  # a sentencepiece .model, or a folder that holds tokenizer.json
text = "Hello, world!"  # what to show
export = False  # write llama2.c's tokenizer.bin instead

FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Tokenizer:
    """
    Tokenizer("data/tok4096.model").encode("Hello, world!", bos=True, eos=True) -> [1, 346, 2233, 4010,
    1475, 4021, 2]

    n_words   vocabulary size: ids are 0 .. n_words - 1
    bos_id    begins a text; eos_id ends one, or a turn of a chat; pad_id fills up. -1 where there is none
    files     {name: bytes} of what it was made from; checkpoints carry it: no other is taken by mistake
    """

    def __init__(self, tokenizer_model=None):
        """
        tokenizer_model: a path as above; or {"kind": "sentencepiece" | "tokenizers", "files": {name:
        bytes}}.
        """
        if not isinstance(tokenizer_model, dict):
            tokenizer_model = read_files(tokenizer_model or tokenizer)
        self.kind, self.files = tokenizer_model["kind"], tokenizer_model["files"]
        self.name = tokenizer_model.get("name", "the checkpoint's tokenizer")
        self.template = self.compiled = self.marks = None
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
            self.template = config.get("chat_template")
            if "chat_template.jinja" in self.files:  # where transformers 5 puts it
                self.template = self.files["chat_template.jinja"].decode("utf-8")
        except Exception as error:  # the Rust library raises bare Exceptions
            raise ValueError(f"{self.name}: not a tokenizer ({error})") from None
        self.n_words = self.tk.get_vocab_size(with_added_tokens=True)
        ids = [self._special(config.get(k)) for k in ("bos_token", "eos_token", "pad_token")]
        self.bos_id, self.eos_id, self.pad_id = ids
        self.special_tokens = {  # what the template may call by name
            k: t.get("content") if isinstance(t, dict) else t
            for k, t in config.items()
            if k.endswith("_token") and isinstance(t, (str, dict))
        }
        marks = [t.content for t in self.tk.get_added_tokens_decoder().values() if t.special]
        any_mark = "(?=" + "|".join(map(re.escape, marks)) + ")."
        self.marks = re.compile(any_mark, re.DOTALL) if marks else None

    def _special(self, token):
        token = token.get("content") if isinstance(token, dict) else token
        found = self.tk.token_to_id(token) if isinstance(token, str) else None
        return -1 if found is None else found

    def encode(self, s: str, bos: bool = False, eos: bool = False) -> list[int]:
        """A text's ids, with bos_id before and eos_id after them where asked (and where there are such)."""
        if self.kind == "sentencepiece":
            ids = self.sp.encode(s)
        else:
            ids = self.tk.encode(s, add_special_tokens=False).ids
        if bos and self.bos_id >= 0:
            ids.insert(0, self.bos_id)
        if eos and self.eos_id >= 0:
            ids.append(self.eos_id)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of many texts, without BOS and EOS, by one call into the library."""
        if self.kind == "sentencepiece":
            return self.sp.encode(texts, num_threads=1)
        return [e.ids for e in self.tk.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special tokens (BOS, EOS) have none."""
        outside = [i for i in ids if not 0 <= i < self.n_words]
        if outside:
            raise ValueError(f"id {outside[0]} is outside the vocabulary of {self.n_words} of {self.name}")
        return self.sp.decode(ids) if self.kind == "sentencepiece" else self.tk.decode(ids)

    def normalize(self, s: str) -> str:
        """The text that encode(s) stands for: NFKC folds full-width forms ('，' to ',') in what we train."""
        if self.kind == "sentencepiece" or self.tk.normalizer is None:
            return s
        return self.tk.normalizer.normalize_str(s)

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """
        A chat, [{"role": "user", "content": "..."}, ...], as the one text that the model reads;
        add_generation_prompt appends the head of the answer that is to come.

        The template is a program that came with somebody's tokenizer: it runs in Jinja's sandbox, with the
        settings of transformers' apply_chat_template. There it reaches no file and changes nothing; not
        promised is that it ends soon, or takes little memory.
        """
        if not self.template:
            raise ValueError(f"{self.name} has no chat template")
        try:
            self.compiled = self.compiled or compile_template(self.template)
            return self.compiled.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self.special_tokens
            )
        except Exception as error:  # whatever the program may raise
            raise ValueError(f"the chat template of {self.name}: {error}") from None

    def encode_chat(self, messages: list[dict], add_generation_prompt: bool = False):
        """
        (ids, mask) of a chat: the ids of the rendered whole, and for each of them 1 where a model is to
        learn it, 0 where it is given. With add_generation_prompt an answer is to come, and all is given.

            <|im_start|> user \n 你好 <|im_end|> \n <|im_start|> assistant \n 你好 ! <|im_end|> \n
                  0        0   0  0       0      0        0          0       0   1   1      1      0

        Learned are an answer and the token that ends it. Where an answer begins is known from rendering
        turn by turn: behind the chat so far and the head of an answer. A token that reaches from that head
        into the answer (an answer of blanks may join the newline before it) is not learned.

        No message can forge a turn: where one spells out a special token, its first letter becomes the
        full-width one, '＜' for '<'. That is no special token any more, and NFKC, which comes later, folds it
        back: the model reads the same letters, as text. Messages that spell none are left as they are.
        """
        try:
            messages = [m | {"role": m["role"], "content": self._plain(m["content"])} for m in messages]
        except (TypeError, KeyError):
            raise ValueError('a chat is a list of {"role": ..., "content": ...}') from None
        text = self.render(messages, add_generation_prompt)
        text.encode("utf-8")  # ValueError for half a surrogate pair, which JSON can spell
        encoded = self.tk.encode(text, add_special_tokens=False)
        ids, starts = encoded.ids, [start for start, _ in encoded.offsets]  # in characters of the text
        mask = [0] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] != "assistant" or add_generation_prompt:
                continue
            head = self.render(messages[:i], add_generation_prompt=True)
            until = self.render(messages[: i + 1])
            if not (text.startswith(until) and until.startswith(head)):
                raise ValueError(f"the chat template of {self.name} does not render a chat turn by turn")
            first, behind = bisect_left(starts, len(head)), bisect_left(starts, len(until))
            while (
                behind > first and ids[behind - 1] != self.eos_id
            ):  # what the template writes after the end
                behind -= 1
            if behind == first:
                raise ValueError(f"the chat template of {self.name} ends no answer with its end token")
            mask[first:behind] = [1] * (behind - first)
        return ids, mask

    def _plain(self, content: str) -> str:
        if not self.marks:
            return content
        return self.marks.sub(lambda m: chr(ord(m[0]) + 0xFEE0) if "!" <= m[0] <= "~" else " ", content)

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
        raise ValueError(
            f"no tokenizer at {path}: tinystories.py train_vocab or train_tokenizer.py makes one"
        )
    files = {}
    for name, p in zip(names, paths):
        with open(p, "rb") as f:
            files[name] = f.read()
    return {"kind": kind, "name": path, "files": files}


def compile_template(source):
    """A Jinja template as transformers compiles it, and as sealed off."""
    import jinja2.sandbox  # comes with torch

    def refuse(message):
        raise jinja2.TemplateError(message)

    def tojson(value, **options):  # Jinja's own writes < as \u003c, for web pages
        return json.dumps(value, **{"ensure_ascii": False} | options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)


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
