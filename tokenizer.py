"""
The tokenizer: turns text into token ids and token ids into text.

Reads  a sentencepiece model (data/tok4096.model, made by tinystories.py), or a folder with tokenizer.json
       (tokenizer_k/, made by train_tokenizer.py; models on a hub have one, too)
Writes nothing; as a command, it prints each id of a text with its piece:

    python tokenizer.py --tokenizer=data/tok4096.model --text="Hello, world!"

A token is a frequent piece of text: a word, a syllable, a letter. A vocabulary of words would need an entry
for every word ever written; a vocabulary of characters would make the sequences long. Byte pair encoding
(BPE; Sennrich et al. 2016, arXiv:1508.07909) lies between: it starts from characters, and merges the most
frequent pair of neighbours until the vocabulary is full. What has no piece falls back to bytes, so every
text has an encoding. Three tokens are special: BOS ("beginning of sequence") begins a text, EOS ends it, and
PAD, where there is one, fills the rest of a row.
"""

import hashlib
import json
from pathlib import Path

from configurator import InputError, override

tokenizer = "data/tok4096.model"  # a sentencepiece .model, or a folder with tokenizer.json
text = "Hello, world!"  # the text to encode

FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
CHAT_BOS = "<|im_start|>"  # begins a message of a chat
CHAT_EOS = "<|im_end|>"  # ends it
ROLES = ("system", "user", "assistant")


class Tokenizer:
    """
    Tokenizer("data/tok4096.model").encode("Hello, world!", bos=True, eos=True)
        -> [1, 346, 2233, 4010, 1475, 4021, 2]    by the tutorial's; one that you train has other ids

    kind      "sentencepiece" or "tokenizers" (the library that reads the files)
    name      the path, for messages
    n_words   the vocabulary size: ids are 0 .. n_words - 1
    bos_id, eos_id, pad_id    -1 where the tokenizer has no such token
    template  the text of the chat template, which transformers reads; None where there is none
    files     {name: bytes}, all that it was made from; checkpoints carry it
    """

    def __init__(self, source):
        """source: a path, or {"kind": ..., "files": ...} out of a checkpoint."""
        if not isinstance(source, dict):
            source = read_files(source)
        self.kind = source["kind"]
        self.files = source["files"]
        self.name = source.get("name", "the checkpoint's tokenizer")
        self.template = None
        self.has_chat_format = False
        if self.kind == "sentencepiece":
            self._open_sentencepiece()
        else:
            self._open_folder()

    def _open_sentencepiece(self):
        import sentencepiece

        try:
            self.sp = sentencepiece.SentencePieceProcessor(model_proto=next(iter(self.files.values())))
        except RuntimeError:
            raise InputError(f"{self.name} is not a sentencepiece model") from None
        self.n_words = self.sp.vocab_size()
        self.bos_id = self.sp.bos_id()
        self.eos_id = self.sp.eos_id()
        self.pad_id = self.sp.pad_id()

    def _open_folder(self):
        import tokenizers

        try:
            self.tk = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))
            config = json.loads(self.files.get("tokenizer_config.json", b"{}"))
            self.template = config.get("chat_template")
            if "chat_template.jinja" in self.files:  # where transformers 5 puts it
                self.template = self.files["chat_template.jinja"].decode("utf-8")
        except Exception as error:  # the library, written in Rust, raises plain Exceptions
            raise InputError(f"{self.name} is not a tokenizer: {error}") from None
        self.n_words = self.tk.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._special_id(config.get("bos_token"))
        self.eos_id = self._special_id(config.get("eos_token"))
        self.pad_id = self._special_id(config.get("pad_token"))
        special_tokens = {i: t.content for i, t in self.tk.get_added_tokens_decoder().items() if t.special}
        self.has_chat_format = (
            isinstance(self.tk.decoder, tokenizers.decoders.ByteLevel)
            and special_tokens.get(self.bos_id) == CHAT_BOS
            and special_tokens.get(self.eos_id) == CHAT_EOS
        )

    def _special_id(self, token):
        """The id of a special token as tokenizer_config.json gives it: a text, a dict or None."""
        token = token["content"] if isinstance(token, dict) else token
        token_id = self.tk.token_to_id(token or "")
        return -1 if token_id is None else token_id

    def encode(self, s: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text; on request after BOS and before EOS, if the tokenizer has them."""
        sentencepiece = self.kind == "sentencepiece"
        ids = self.sp.encode(s) if sentencepiece else self.tk.encode(s, add_special_tokens=False).ids
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

    def encode_chat(self, messages: list[dict], add_generation_prompt: bool = False):
        """
        (ids, mask) of a chat, [{"role": "user", "content": "你好"}, ...]. The mask is 1 where the id is to
        be learned: only the answers and the EOS after each are.

            <|im_start|> user \n 你好 <|im_end|> \n <|im_start|> assistant \n 你好 ！<|im_end|> \n
                  0        0   0  0       0      0        0          0       0   1   1      1      0

        With add_generation_prompt, nothing is learned, and the beginning of the next answer is appended.
        A message that spells "<|im_end|>" does not end itself: its content is encoded as plain text.
        """
        if not self.has_chat_format:
            raise InputError(f"{self.name} has no chat format with {CHAT_BOS} as BOS and {CHAT_EOS} as EOS")
        check_messages(messages)
        ids = []
        mask = []
        for message in messages:
            head = [self.bos_id, *self._encode_plain(message["role"] + "\n")]
            body = [*self._encode_plain(message["content"]), self.eos_id]
            tail = self._encode_plain("\n")
            learned = int(message["role"] == "assistant")
            ids += head + body + tail
            mask += [0] * len(head) + [learned] * len(body) + [0] * len(tail)
        if add_generation_prompt:
            ids += [self.bos_id, *self._encode_plain("assistant\n")]
            mask = [0] * len(ids)
        return ids, mask

    def _encode_plain(self, s):
        """The ids of a text; special tokens that it spells are plain text."""
        self.tk.encode_special_tokens = True  # means: encode them like any other text
        ids = self.tk.encode(s, add_special_tokens=False).ids
        self.tk.encode_special_tokens = False
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        outside = [i for i in ids if not 0 <= i < self.n_words]
        if outside:
            raise InputError(f"id {outside[0]} is outside the vocabulary of {self.n_words} of {self.name}")
        return self.sp.decode(ids) if self.kind == "sentencepiece" else self.tk.decode(ids)

    def normalize(self, s: str) -> str:
        """The text that encode(s) stands for. sentencepiece makes "a  b" "a b", NFKC makes '，' a ','."""
        if self.kind == "sentencepiece":
            return self.sp.normalize(s).removeprefix("▁").replace("▁", " ")
        return self.tk.normalizer.normalize_str(s) if self.tk.normalizer else s

    def piece(self, i: int) -> str:
        """The piece of an id as the vocabulary spells it ('▁' or 'Ġ' is the space before a word)."""
        return self.sp.id_to_piece(i) if self.kind == "sentencepiece" else self.tk.id_to_token(i)

    def readable(self, i: int) -> str:
        """The piece of an id for people: '三加' instead of ä¸īåĬł. Parts of a character stay as they are."""
        text = "\ufffd" if self.kind == "sentencepiece" else self.tk.decode([i], skip_special_tokens=False)
        return self.piece(i) if "\ufffd" in text else repr(text)

    def state(self) -> dict:
        """Plain types for a checkpoint: Tokenizer(tok.state()) is the same tokenizer."""
        return {"kind": self.kind, "files": self.files}

    def fingerprint(self) -> str:
        """Equal for two tokenizers that give the same ids. Shards and checkpoints compare it."""
        content = self.files.get("tokenizer.json") or next(iter(self.files.values()))
        if self.kind == "tokenizers":  # tokenizer.json does not say which tokens are BOS, EOS and PAD
            content += f"{self.bos_id} {self.eos_id} {self.pad_id}".encode()
        return hashlib.sha256(content).hexdigest()[:16]


def read_files(path):
    """The source of a tokenizer on disk: {"kind": ..., "name": ..., "files": {name: bytes}}."""
    path = Path(path)
    if path.is_dir():
        files = {name: (path / name).read_bytes() for name in FOLDER_FILES if (path / name).exists()}
        if "tokenizer.json" not in files:
            raise InputError(f"no tokenizer.json in the folder {path}")
        return {"kind": "tokenizers", "name": str(path), "files": files}
    if not path.exists():
        raise InputError(f"no tokenizer {path}: tinystories.py train_vocab or train_tokenizer.py makes one")
    return {"kind": "sentencepiece", "name": str(path), "files": {"tokenizer.model": path.read_bytes()}}


def check_messages(messages):
    """InputError unless messages is a list of {"role": one of ROLES, "content": a text}."""
    for message in messages if isinstance(messages, list) else [None]:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or message.get("role") not in ROLES:
            raise InputError(f'a chat is a list of {{"role": {" | ".join(ROLES)}, "content": a text}}')
        if content != content.encode("utf-8", "ignore").decode("utf-8"):
            raise InputError("the content of a message holds half a surrogate pair, which is no character")


if __name__ == "__main__":
    override(globals())
    tok = Tokenizer(tokenizer)
    ids = tok.encode(text, bos=True, eos=True)
    for i in ids:
        print(f"{i:>6}  {tok.readable(i)}")
    print(f"{len(ids)} tokens for {len(text.encode())} bytes: {ids}")
    print(f"decoded: {tok.decode(ids)}")
