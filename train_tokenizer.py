"""
A tokenizer for Chinese, with a chat template.

Reads  lines of {"text": ...} (prepare_data.py pretrain)
Writes tokenizer_k/ with tokenizer.json, tokenizer_config.json, special_tokens_map.json: what tokenizer.py
       and transformers' AutoTokenizer read

    python train_tokenizer.py --input=data/seq_monkey_datawhale.jsonl   learns 6,144 tokens, tries them out
    python train_tokenizer.py --eval_only=True                          only tries them out

Byte-level BPE: a text is first its UTF-8 bytes, 256 tokens that can spell anything; then the most
frequent pair of neighbours becomes a token, until the vocabulary is full. A Chinese character is 3 bytes:
the first merges put characters together again, the later ones words.

Pairs are counted in "words", runs of letters. Chinese has no spaces: a run is half a sentence, hardly any
comes twice, and the table of runs is as good as the text, at 30 to 100 bytes of memory for a byte (2.9 MB
took 300 MB; 2 GB take over 60 GB). Hence --max_chars. The file's first part, on which the model will be
validated, is not learned from; the tokenizer is tried out on it.
"""

import collections
import json
import os

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from configurator import atomic_write, override
from documents import field, json_lines, texts_of
from prepare_data import SYSTEM, parts_of
from tokenizer import Tokenizer

input = "data/seq_monkey_datawhale.jsonl"  # lines of {"text": ...}
output = "tokenizer_k"  # the folder to write
vocab_size = 6144  # tokens, the 256 bytes and the special ones among them
max_chars = 10_000_000  # learn from so many characters, taken from all over the file; 1 to 3 GB of memory
eval_only = False  # try out the tokenizer in the output folder, and train nothing

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")  # ids 0 to 4
HELD_OUT = 1_000_000  # characters to measure on
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "<|im_start|>system\n{{ message['content'] }}<|im_end|>\n"
    "{% elif message['role'] == 'user' %}"
    "<|im_start|>user\n{{ message['content'] }}<|im_end|>\n"
    "{% elif message['role'] == 'assistant' %}"
    "<|im_start|>assistant\n{{ message['content'] }}<|im_end|>\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
NAMES = {  # the pad token may be the end token, since what is learned is told by position and not by id
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<unk>",
    "pad_token": "<|im_end|>",
}
SPECIAL_TOKENS_MAP = NAMES | {"additional_special_tokens": ["<s>", "</s>"]}
CONFIG = NAMES | {
    "add_bos_token": False,
    "add_eos_token": False,
    "add_prefix_space": False,  # True has transformers 4 put a space before each text
    "model_max_length": 1000000000000000019884624838656,
    "clean_up_tokenization_spaces": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "chat_template": CHAT_TEMPLATE,
}


def train_tokenizer(path, folder):
    """Learn vocab_size tokens from a .jsonl and write the folder."""
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"--vocab_size={vocab_size} has no room for 256 bytes and 5 special tokens")
    tk = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tk.normalizer = normalizers.NFKC()  # full-width letters and punctuation become the plain ones
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tk.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tk.train_from_iterator(training_texts(path), trainer)
    for i, token in enumerate(SPECIAL_TOKENS):
        if tk.token_to_id(token) != i:
            raise ValueError(f"{token} has the id {tk.token_to_id(token)}, not {i}")
    if tk.get_vocab_size() < vocab_size:
        print(f"no pair is left that comes twice: {tk.get_vocab_size()} tokens, not {vocab_size}")
    for name, value in (("tokenizer_config", CONFIG), ("special_tokens_map", SPECIAL_TOKENS_MAP)):
        with atomic_write(os.path.join(folder, f"{name}.json")) as f:
            json.dump(value, f, ensure_ascii=False, indent=4)
    with atomic_write(os.path.join(folder, "tokenizer.json")) as f:  # last: now it is a tokenizer
        f.write(tk.to_str(pretty=True))
    print(f"wrote {folder}")


def training_texts(path):
    """The texts to learn from, an equal share of max_chars from each part of the file but the first."""
    parts = parts_of(path)[1:]
    chars = bad = 0
    with tqdm(total=os.path.getsize(path), desc="read", unit="B", unit_scale=True) as bar:
        for i, (start, end) in enumerate(parts):
            for at, item in json_lines(path, start, end):
                bar.update(at - bar.n)  # where we are in the file
                text = field(item, "text")
                if text is None:
                    bad += 1
                    continue
                text = text[: max_chars * (i + 1) // len(parts) - chars]
                if not text:
                    break
                chars += len(text)
                yield text
            bar.update(end - bar.n)  # passes over what is left of the part
        bar.write(f"{chars:,} characters read, {bad} lines without a text left out; now merging")
    if not chars:
        raise ValueError(f"no text in {path}")


def eval_tokenizer(folder, path):
    """Print what a reader would ask of a tokenizer: does the text come back, and how short does it get?"""
    tok = Tokenizer(folder)
    print(f"\n=== {folder}: {tok.n_words} tokens ===")
    for token in SPECIAL_TOKENS:
        print(f"{token:<14} id {tok.tk.token_to_id(token)}")
    messages = [
        {"role": "system", "content": SYSTEM + "。"},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "I'm fine, thank you. and you?"},
        {"role": "user", "content": "I'm good too."},
        {"role": "assistant", "content": "That's great to hear!"},
    ]
    print(f"\n=== chat template ===\n{tok.render(messages)}\n=== there and back ===")
    print("a chat:          ", there_and_back(tok, tok.render(messages)))
    print("special tokens:  ", there_and_back(tok, "<|im_start|>user\nHello<|im_end|>"))
    print("full-width forms:", there_and_back(tok, "你好，世界！（１２３）"))
    if os.path.exists(path):
        measure(tok, path)
    else:
        print(f"\nno file {path} to measure on: give --input")


def there_and_back(tok, text):
    decoded = tok.tk.decode(tok.encode(text), skip_special_tokens=False)
    if decoded == text:
        return "exactly the same"
    if decoded == tok.normalize(text):
        return f"the same but for NFKC: {text!r} came back as {decoded!r}"
    return f"DIFFERENT: {text!r} came back as {decoded!r}"


def measure(tok, path):
    """Print how much text a token holds, where nothing was learned from it, and what NFKC does to it."""
    start, end = parts_of(path)[0]
    chars = size = tokens = exact = folded = count = 0
    forms = collections.Counter()
    for _, text in texts_of(path, start, end, "text"):
        if chars > HELD_OUT:
            break
        text = text or ""  # of a line without one
        ids, plain = tok.encode(text), tok.normalize(text)
        decoded = tok.tk.decode(ids, skip_special_tokens=False)
        count, exact, folded = count + 1, exact + (decoded == text), folded + (decoded == plain != text)
        chars, size, tokens = chars + len(text), size + len(text.encode()), tokens + len(ids)
        if plain != text:
            forms.update(c for c in text if tok.normalize(c) != c)
    print(f"\n=== held out: {count} texts, {chars:,} characters ===")
    print(f"{chars / max(1, tokens):.2f} characters a token, {size / max(1, tokens):.2f} bytes a token")
    print(f"{exact} texts come back exactly, {folded} but for NFKC, {count - exact - folded} otherwise")
    if forms:
        common = " ".join(f"{c!r}->{tok.normalize(c)!r}" for c, _ in forms.most_common(8))
        print(f"NFKC changes {sum(forms.values()) / chars:.1%} of the characters, these the most: {common}")


if __name__ == "__main__":
    override(globals())
    if not eval_only:
        if not os.path.exists(input):
            raise ValueError(f"no file {input}: run python prepare_data.py pretrain, or give --input")
        train_tokenizer(input, output)
    eval_tokenizer(output, input)
