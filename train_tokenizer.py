"""
Trains a tokenizer for Chinese, with a chat template, and tests it.

Reads  lines of {"text": ...} (made by prepare_data.py pretrain)
Writes tokenizer_k/, a folder that tokenizer.py and the AutoTokenizer of transformers read

    python train_tokenizer.py --data_path=data/seq_monkey_datawhale.jsonl    trains 6,144 tokens, tests them
    python train_tokenizer.py --eval_only                                    only tests them

Byte-level BPE: a text is first its UTF-8 bytes, 256 tokens that can spell everything. Then the most frequent
pair of neighbours becomes a token, again and again, until the vocabulary is full. A Chinese character is 3
bytes: the first merges make characters again, the later ones words.
Pairs are counted within "words", runs of letters. Chinese has no spaces: such a run is half a sentence, and
hardly any comes twice. So a token may be longer than a word, and the table of runs is as large as the text:
it takes 30 to 100 bytes of memory per byte of text (2.9 MB took 300 MB; 2 GB take over 60 GB); --max_chars
limits it. The first part of the file, for validation, is not learned from. The tokenizer is tested on it.
"""

import collections
import json
import os
import re

import tokenizers
from tqdm import tqdm

from configurator import InputError, atomic_write, override
from prepare_data import CHAT_TEMPLATE, SYSTEM, read_texts_from_jsonl, split_file
from tokenizer import Tokenizer

data_path = "data/seq_monkey_datawhale.jsonl"  # lines of {"text": ...}
save_dir = "tokenizer_k"  # the folder to write
vocab_size = 6144  # tokens, with the 256 bytes and the special tokens
normalizer = "none"  # none | nfkc: nfkc, the tutorial's, changes texts: '，' becomes ',' and '①' becomes '1'
split_digits = False  # each digit, 0 to 9 and 零 to 十, is a token by itself: helps a model to calculate
max_chars = 10_000_000  # learn from this many characters, taken from all over the file; 1 to 3 GB of memory
eval_only = False  # train nothing, and test the tokenizer in save_dir

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]  # ids 0 to 4
DIGITS = "[0-9〇零一二三四五六七八九十]"
HELD_OUT = 1_000_000  # characters to measure the compression on
SENTENCE = "今天天气很好，我们一起去公园，好吗？"


def train_tokenizer(data_path, save_dir, vocab_size=8192):
    """Learn vocab_size tokens from a .jsonl and write the folder."""
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise InputError(f"--vocab_size={vocab_size} has no room for 256 bytes and 5 special tokens")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    if normalizer == "nfkc":
        tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split_digits:
        digits = tokenizers.pre_tokenizers.Split(tokenizers.Regex(DIGITS), "isolated")
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sample_texts(data_path, max_chars), trainer)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    if tokenizer.get_vocab_size() < vocab_size:
        print(f"no pair occurs twice any more: {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    create_tokenizer_config(save_dir)
    with atomic_write(os.path.join(save_dir, "tokenizer.json")) as f:  # the last: now it is a tokenizer
        f.write(tokenizer.to_str(pretty=True))
    print(f"wrote {save_dir}")


def sample_texts(data_path, max_chars):
    """The texts to learn from: an equal share of max_chars from each part of the file but the first."""
    parts = split_file(data_path)[1:]
    chars = 0
    for i, (start, end) in enumerate(tqdm(parts, "read", unit=" parts"), 1):
        for text in read_texts_from_jsonl(data_path, start, end):
            text = text[: max_chars * i // len(parts) - chars]
            if not text:
                break
            chars += len(text)
            yield text
    if not chars:
        raise InputError(f"no text in {data_path}")
    print(f"{chars:,} characters read; now merging")


def create_tokenizer_config(save_dir):
    """Write what transformers wants to know beside tokenizer.json."""
    special_tokens = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<|im_end|>",  # may be EOS: what is learned is told by the mask, not by the id
    }
    config = {
        **special_tokens,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,  # with True, transformers 4 puts a space before each text
        "model_max_length": 1000000000000000019884624838656,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    special_tokens_map = {**special_tokens, "additional_special_tokens": ["<s>", "</s>"]}
    for name, value in (("tokenizer_config", config), ("special_tokens_map", special_tokens_map)):
        with atomic_write(os.path.join(save_dir, f"{name}.json")) as f:
            json.dump(value, f, ensure_ascii=False, indent=4)


def eval_tokenizer(tokenizer_path, data_path=None):
    """
    Print what the tokenizer does: its tokens, a chat, whether texts come back from their ids, and with a
    .jsonl of texts, how short they become.
    """
    tok = Tokenizer(tokenizer_path)
    print("\n=== The tokenizer ===")
    print(f"Vocab size: {tok.n_words}")
    print(f"Special tokens: { {token: tok.tk.token_to_id(token) for token in SPECIAL_TOKENS} }")
    learned = (tok.decode([i]) for i in range(tok.n_words))
    chinese = [text for text in learned if re.fullmatch("[\u4e00-\u9fff]+", text)]
    print("The longest Chinese tokens:", " ".join(sorted(chinese, key=len, reverse=True)[:20]))
    print("A sentence as tokens:", " / ".join(tok.readable(i).strip("'") for i in tok.encode(SENTENCE)))

    print("\n=== The chat template ===")
    messages = [
        {"role": "system", "content": SYSTEM + "。"},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "I'm fine, thank you. and you?"},
        {"role": "user", "content": "I'm good too."},
        {"role": "assistant", "content": "That's great to hear!"},
    ]
    chat = tok.tk.decode(tok.encode_chat(messages)[0], skip_special_tokens=False)
    print(f"Generated prompt:\n{chat}")

    for title, text in (
        ("A chat, as ids and back", chat),
        ("Special tokens in a text", "<|im_start|>user\nHello<|im_end|>"),
        ("Full-width characters", "你好，世界！（１２３）"),
    ):
        print(f"\n=== {title} ===")
        decoded = tok.tk.decode(tok.encode(text), skip_special_tokens=False)
        print(f"Original: {text!r}\nDecoded:  {decoded!r}")
        print("Decoded text matches original:", check_round_trip(tok, text))
    if data_path and os.path.exists(data_path):
        measure_compression(tok, data_path)


def check_round_trip(tok, text):
    """Whether a text comes back from its ids as it was. With NFKC, some do not."""
    return tok.tk.decode(tok.encode(text), skip_special_tokens=False) == text


def measure_compression(tok, data_path):
    """Print how much text a token holds, in the part that nothing was learned from, and what comes back."""
    counts = collections.Counter()
    changed = collections.Counter()  # characters that do not come back
    for text in read_texts_from_jsonl(data_path, *split_file(data_path)[0]):
        counts["texts"] += 1
        counts["chars"] += len(text)
        counts["bytes"] += len(text.encode("utf-8"))
        counts["tokens"] += len(tok.encode(text))
        counts["same"] += check_round_trip(tok, text)
        changed.update(c for c in text if tok.normalize(c) != c)
        if counts["chars"] > HELD_OUT:
            break
    tokens = max(1, counts["tokens"])
    print(f"\n=== held out: {counts['texts']:,} texts, {counts['chars']:,} characters ===")
    print(f"{counts['chars'] / tokens:.3f} characters and {counts['bytes'] / tokens:.2f} bytes per token")
    print(f"{counts['same']:,} of {counts['texts']:,} texts come back exactly")
    if changed:
        common = " ".join(f"{c!r}->{tok.normalize(c)!r}" for c, _ in changed.most_common(8))
        print(f"NFKC changes {changed.total() / counts['chars']:.1%} of the characters, most often: {common}")


if __name__ == "__main__":
    override(globals())
    if not eval_only:
        if not os.path.exists(data_path):
            raise InputError(f"no file {data_path}: run python prepare_data.py pretrain, or give --data_path")
        train_tokenizer(data_path, save_dir, vocab_size)
    eval_tokenizer(save_dir, data_path)
