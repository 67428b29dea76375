"""
The tokenizer: turns text into token ids and token ids into text.

Reads  a sentencepiece model (data/tok4096.model, made by tinystories.py), or a folder with tokenizer.json
       (tokenizer_k/, made by train_tokenizer.py; models on a hub have one, too)
Writes nothing; as a command, it prints each id of a text with its piece:

    python tokenizer.py --tokenizer=data/tok4096.model --text="Hello, world!"

A token is a frequent piece of text: a word, a syllable, a letter. Byte pair encoding (BPE; Sennrich et al.
2016, arXiv:1508.07909) starts from characters, and merges the most frequent pair of neighbours until the
vocabulary is full. What has no piece falls back to bytes, so every text has an encoding. Three tokens are
special: BOS ("beginning of sequence") begins a text, EOS ends it, and PAD, if there is one, fills a row.
"""

import hashlib
import json
from pathlib import Path

from configurator import InputError, as_input_error, override

tokenizer = "data/tok4096.model"  # a sentencepiece .model, or a folder with tokenizer.json
text = "Hello, world!"  # the text to encode

FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FILES = {"sentencepiece": ("tokenizer.model",), "tokenizers": FOLDER_FILES}  # of each kind; no other is taken
ROLES = ("system", "user", "assistant")


class Tokenizer:
    """
    Tokenizer("data/tok4096.model").encode("Hello, world!", bos=True, eos=True)
        -> [1, 346, 2233, 4010, 1475, 4021, 2]    by the tutorial's; one that you train has other ids

    kind      "sentencepiece" or "tokenizers" (the library that reads the files)
    name      the path, for messages
    n_words   the vocabulary size: ids are 0 .. n_words - 1
    bos_id, eos_id, pad_id    -1 where the tokenizer has no such token
    chat_start_id, chat_end_id    of <|im_start|> and <|im_end|>, between which a message of a chat is; or -1
    template  the text of the chat template, which transformers reads; None where there is none
    files     {name: bytes}, all that it was made from; checkpoints carry it
    """

    def __init__(self, source):
        """source: a path, or {"kind": ..., "files": ...} out of a checkpoint. InputError where it is none."""
        source = source if isinstance(source, dict) else read_files(source)
        self.kind = source.get("kind")
        self.name = source.get("name", "the checkpoint's tokenizer")
        # A stranger's checkpoint may name any file here, and extras/export.py writes them.
        files = source.get("files")
        names = FILES.get(str(self.kind), ()) if isinstance(files, dict) else ()
        self.files = {name: files[name] for name in names if name in files}
        if not self.files or not all(isinstance(content, bytes) for content in self.files.values()):
            raise InputError(f"{self.name} is none that can be read here")
        self.template = None
        self.chat_start_id = self.chat_end_id = -1
        if self.kind == "sentencepiece":
            self._open_sentencepiece()
        else:
            self._open_folder()
        self.has_chat_format = self.chat_start_id >= 0 and self.chat_end_id >= 0
        for i in {self.bos_id, self.eos_id, self.chat_start_id, self.chat_end_id} - {-1}:
            if i in self.encode(f"{self.piece(i)} a{self.piece(i)}a"):  # a unigram model knows no better
                raise InputError(f"{self.name} makes {self.piece(i)} of a text that says so")

    def _open_sentencepiece(self):
        import sentencepiece

        with as_input_error(f"{self.name} is not a sentencepiece model"):
            self.sp = sentencepiece.SentencePieceProcessor(model_proto=self.files["tokenizer.model"])
            self.n_words = self.sp.vocab_size()
            self.sp.encode("a")  # fails in an empty model
        self.bos_id, self.eos_id, self.pad_id = self.sp.bos_id(), self.sp.eos_id(), self.sp.pad_id()

    def _open_folder(self):
        import tokenizers

        with as_input_error(f"{self.name} is not a tokenizer"):
            self.tk = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))
            names = ("tokenizer_config.json", "special_tokens_map.json")
            config, tokens = (json.loads(self.files.get(name, b"{}").decode("utf-8-sig")) for name in names)
            # Whose word is the last one, transformers decides so, too.
            config = tokens | config if "added_tokens_decoder" in config else config | tokens
            self.template = config.get("chat_template")
            if "chat_template.jinja" in self.files:  # where transformers 5 puts it
                self.template = self.files["chat_template.jinja"].decode("utf-8")
            self.n_words = max(self.tk.get_vocab(with_added_tokens=True).values()) + 1
            ids = [self._special_id(config.get(f"{name}_token")) for name in ("bos", "eos", "pad")]
            self.bos_id, self.eos_id, self.pad_id = ids
        self.tk.no_truncation()  # a tokenizer.json may ask for these
        self.tk.no_padding()
        if getattr(self.tk.model, "dropout", None):  # of merges, at random
            self.tk.model.dropout = None
        self.tk.encode_special_tokens = True  # means: what spells a special token is text like any other
        special = {t.content: i for i, t in self.tk.get_added_tokens_decoder().items() if t.special}
        if isinstance(self.tk.decoder, tokenizers.decoders.ByteLevel):
            self.chat_start_id = special.get("<|im_start|>", -1)
            self.chat_end_id = special.get("<|im_end|>", -1)

    def _special_id(self, token):
        """The id of a special token as the config gives it: a text, a dict or None."""
        token = token.get("content") if isinstance(token, dict) else token
        token_id = self.tk.token_to_id(token) if isinstance(token, str) else None
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

    def encode_chat(self, messages: list[dict], add_generation_prompt: bool = False):
        """
        (ids, mask) of a chat, [{"role": "user", "content": "你好"}, ...]. The mask is 1 where the id is to
        be learned: only the answers and the <|im_end|> after each are.

            <|im_start|> user \n 你好 <|im_end|> \n <|im_start|> assistant \n 你好 ！<|im_end|> \n
                  0        0   0  0       0      0        0          0       0   1   1      1      0

        With add_generation_prompt, nothing is learned, and the beginning of the next answer is appended.
        A message that spells "<|im_end|>" does not end itself: its content is encoded as plain text.
        """
        if not self.has_chat_format:
            raise InputError(f"{self.name} has no chat format: no special tokens <|im_start|> and <|im_end|>")
        check_messages(messages)
        ids = []
        mask = []
        newline = self.encode("\n")
        for message in messages:
            head = self.encode(message["role"] + "\n")
            text = self.encode(message["role"] + "\n" + message["content"])  # a token may stand in both
            num_head = next((i for i, (a, b) in enumerate(zip(head, text)) if a != b), len(head))
            learned = int(message["role"] == "assistant")
            ids += [self.chat_start_id, *text, self.chat_end_id, *newline]
            mask += [0] * (1 + num_head) + [learned] * (len(text) - num_head + 1) + [0] * len(newline)
        if add_generation_prompt:
            ids += [self.chat_start_id, *self.encode("assistant\n")]
            mask = [0] * len(ids)
        return ids, mask

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        return self.sp.decode(ids) if self.kind == "sentencepiece" else self.tk.decode(ids)

    def normalize(self, s: str) -> str:
        """The text that encode(s) stands for. sentencepiece makes "a  b" "a b", NFKC makes '，' a ','."""
        if self.kind == "tokenizers" and not self.tk.normalizer:
            return s
        normalize = self.sp.normalize if self.kind == "sentencepiece" else self.tk.normalizer.normalize_str
        return normalize(s).removeprefix("▁").replace("▁", " ")

    def piece(self, i: int) -> str:
        """The piece of an id as the vocabulary spells it ('▁' or 'Ġ' is the space before a word)."""
        return self.sp.id_to_piece(i) if self.kind == "sentencepiece" else self.tk.id_to_token(i) or ""

    def longer(self, last: int) -> list[int]:
        """The ids that would make a word longer whose last id is `last`; [] if no word ends there."""
        # Scripts with upper and lower case put spaces between words. Elsewhere nobody knows where one ends.
        has_case = lambda letter: letter.lower() != letter.upper()  # noqa: E731
        in_word = self.kind == "sentencepiece" and has_case(self.piece(last)[-1:])
        return [i for i in range(self.n_words) if in_word and has_case(self.piece(i)[:1])]

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
    path = Path(path).parent if Path(path).name == "tokenizer.json" else Path(path)
    if not path.exists():
        raise InputError(f"no tokenizer {path}: tinystories.py train_vocab or train_tokenizer.py makes one")
    if path.is_file():
        return {"kind": "sentencepiece", "name": str(path), "files": {"tokenizer.model": path.read_bytes()}}
    files = {name: (path / name).read_bytes() for name in FOLDER_FILES if (path / name).exists()}
    if "tokenizer.json" not in files:
        raise InputError(f"no tokenizer.json in the folder {path}")
    return {"kind": "tokenizers", "name": str(path), "files": files}


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
