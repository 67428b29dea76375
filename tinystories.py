"""
The data: from stories in JSON to batches of token ids, one command a stage.

    python tinystories.py download        TinyStories from a hub: 1.5 GB      -> data/TinyStories_all_data/
    python tinystories.py synthesize      without a network: synthetic ones   -> the same
    python tinystories.py train_vocab     a sentencepiece BPE tokenizer       -> data/tok4096.model
    python tinystories.py pretokenize     the stories' ids, shard by shard    -> data/tok4096/

`pretokenize` first runs what is missing, so it alone is enough. --input_path=my.txt takes a text of your own.
A shard is token ids back to back (uint16, little-endian; uint32 above 65,536 ids), each story begun by BOS;
llama2.c reads and writes the same, in uint16. Shard 0 is for validation, everywhere and always: no tokenizer
and no model learns from it. TinyStories: Eldan & Li 2023, arXiv:2305.07759.
"""

import collections
import contextlib
import functools
import glob
import multiprocessing
import os
import re
import shutil
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import sentencepiece
import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import InputError, as_input_error, atomic_write, cpu_count, override, read_json, write_json
from reader import get_text, read_values
from tokenizer import Tokenizer

data_dir = "data"  # the folder for all of it
vocab_size = 4096  # at least 0: of the tokenizer; 0 is Llama 2's own, 32,000, given by --tokenizer
tokenizer = ""  # a tokenizer to take instead of data/tok<vocab_size>.model
input_path = ""  # a text of your own to make stories of, .txt, .jsonl or .json: see extras/own_text.py
text_key = "text"  # the field of that .jsonl or .json that holds the text
encoding = "utf-8"  # of that text: utf-8, gb18030, utf-16, ...
small = False  # download: only the 22.5 MB
hub = "huggingface"  # huggingface | modelscope: download: which to ask first, before the other
num_shards = 10  # at least 1: train_vocab: how many shards to learn from, beginning with data01
megabytes = 20.0  # above 0: synthesize: how much
longest_piece = 16  # at least 1, below 513: train_vocab: characters in a piece; 1 is usual for Chinese
language = "en"  # en | zh: synthesize: of the stories
seed = 42  # at least 0, below 4e9: synthesize: another seed tells other stories
workers = cpu_count()  # at least 1: processes

COMMANDS = ("download", "synthesize", "train_vocab", "pretokenize")
LEARNED, CHAT_START = 1, 2  # in a .mask: an id that is learned, and one with which a conversation begins
STORIES = "TinyStories_all_data"  # dataNN.json in it, each a list of {"story": ...}
SHARDS = 50  # as many as the original has
COUNTS = ("documents", "bytes", "tokens")  # of each shard and each split, in meta.json
META = {"vocab_size": int, "tokenizer": str, "row_len": int, "limit_bpb": float}  # in it, too
print_once = functools.cache(functools.partial(print, file=sys.stderr))
open_tokenizer = functools.cache(Tokenizer)  # each process opens it once


def download():
    """fetch TinyStories (--small: 22.5 MB of it)"""
    from extras.hubs import download_file, unpack

    name = "TinyStoriesV2-GPT4-valid.txt" if small else f"{STORIES}.tar.gz"
    with new_stories() as folder:
        path = download_file(name, data_dir, hub)
        if not small:
            return unpack(path, folder)
        stories = [{"story": text.strip(), "source": "GPT-4"} for text in read_values(path, get_text)]
        for i in range(SHARDS):
            write_json(f"{folder}/data{i:02}.json", stories[i::SHARDS])


def synthesize():
    """write synthetic stories, for a machine with no network"""
    from extras.synthetic_stories import write_stories

    with new_stories() as folder:
        write_stories(folder, SHARDS, seed, megabytes, workers, language, exit_with_parent)


@contextlib.contextmanager
def new_stories():
    """A folder to fill, which becomes data/TinyStories_all_data when all is written, if there is none yet."""
    folder = f"{data_dir}/{STORIES}"
    if os.path.exists(folder):
        raise InputError(f"{folder} is there already: use it as it is, or give another --data_dir")
    unfinished = folder + ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
    yield unfinished
    os.rename(unfinished, folder)
    print(f"{len(story_files())} files of stories in {folder}")


def ensure_stories():
    """The files of stories: of input_path, or those that are there, or TinyStories, or synthetic ones."""
    if input_path:
        from extras.own_text import write_own_text

        write_own_text(input_path, text_key, encoding, f"{data_dir}/{STORIES}", num_shards + 1)
    elif not story_files():
        print(f"no stories in {data_dir}/{STORIES}: downloading TinyStories")
        try:
            download()
        except InputError as error:
            print(f"\n*** {error}\n*** Taking SYNTHETIC stories; for real ones: tinystories.py download\n")
            synthesize()
    return story_files()


def story_files():
    return sorted(glob.glob(f"{glob.escape(data_dir)}/{STORIES}/data*.json"))


def read_texts(path):
    return [text.strip() for text in read_values(path, lambda item: get_text(item, "story"))]


def train_vocab():
    """learn a BPE vocabulary of --vocab_size pieces from the stories"""
    if vocab_size == 0:
        raise InputError("Llama 2's vocabulary is given by --tokenizer=PATH, not trained")
    if vocab_size < 270:
        raise InputError(f"--vocab_size={vocab_size} has no room for 256 bytes, 3 special tokens and pieces")
    files = ensure_stories()[1 : num_shards + 1]  # not the validation shard
    print(f"training a vocabulary of {vocab_size} on {len(files)} files of stories")
    # If there are too many characters, the rarest become spaces here, and bytes in an encoded text.
    characters = collections.Counter(c for path in files for text in read_texts(path) for c in text)
    room = vocab_size - 259  # beside 256 bytes, <unk>, BOS and EOS; half of it is for pieces of several
    kept = room if longest_piece == 1 or len(characters) <= room else room // 2
    to_space = {ord(c): " " for c, _ in characters.most_common()[kept:]}
    lines = (line for path in files for s in read_texts(path) for line in s.translate(to_space).splitlines())
    # sentencepiece ignores lines of more than 4,192 bytes: cut them, at spaces if there are some.
    parts = (part for line in lines for part in re.findall(r".{1,1000}(?!\S)|.{1,1000}", line))
    try:
        with atomic_write(tokenizer_path(), "wb") as f:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=parts, model_writer=f, model_type="bpe", vocab_size=vocab_size,
                num_threads=workers, minloglevel=2, character_coverage=1.0,
                max_sentencepiece_length=longest_piece,
                split_digits=True,  # a number is its digits
                byte_fallback=True,  # a character without a piece is its bytes
                normalization_rule_name="identity",  # the text stays as it is
                allow_whitespace_only_pieces=True,
            )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1] or f"the stories give no vocabulary of {vocab_size}"
        raise InputError(f"sentencepiece: {reason}") from None
    print(f"wrote {tokenizer_path()}")


def tokenizer_path():
    return tokenizer or f"{data_dir}/tok{vocab_size}.model"


def pretokenize(num_pieces=None):
    """turn the stories into shards of token ids"""
    global vocab_size
    vocab_size = vocab_size if num_pieces is None else num_pieces  # given from Python, as in the tutorial
    files = ensure_stories()
    if not os.path.exists(tokenizer_path()):
        train_vocab()
    tok = Tokenizer(tokenizer_path())
    if vocab_size and tok.n_words != vocab_size:
        raise InputError(f"--vocab_size={vocab_size}, but {tok.name} has {tok.n_words} pieces")
    folder = shard_folder(vocab_size, "custom" if vocab_size else "llama2", data_dir)
    jobs = [{"name": f"data{i:02}", "path": path} for i, path in enumerate(files)]
    corpus = f"{data_dir}/{STORIES}/corpus.json"
    limit = read_json(corpus).get("limit_bpb") if os.path.exists(corpus) else None  # of synthetic stories
    extra = {"limit_bpb": limit} if limit else {}
    write_shards(folder, jobs, process_shard, tokenizer_path(), workers, **extra)


def process_shard(job, tok, dtype):
    """The ids of a file of stories, as write_shards wants them: (ids, no mask, counts)."""
    ids, counts = encode_documents(read_texts(job["path"]), tok, dtype)
    return ids, None, counts


def encode_documents(texts, tok, dtype, eos=False):
    """Texts -> the bytes of BOS, a text's ids, (EOS,) BOS, ..., and counts. Without BOS, EOS ends a text."""
    if tok.bos_id < 0 and tok.eos_id < 0:
        raise InputError(f"{tok.name} has neither BOS nor EOS to stand between two documents")
    encode = text_encoder(tok, dtype)
    begin = np.array([tok.bos_id] if tok.bos_id >= 0 else [], dtype).tobytes()
    end = np.array([tok.eos_id] if tok.bos_id < 0 or (eos and tok.eos_id >= 0) else [], dtype).tobytes()
    texts = list(texts)
    if any(tok.decode(tok.encode(text)).strip() != tok.normalize(text).strip() for text in texts[:100]):
        print_once(f"{tok.name}: not every text comes back from its ids")
    ids = b"".join(begin + encode(text) + end for text in texts)
    size = sum(len(tok.normalize(text).encode("utf-8")) for text in texts)
    return ids, {"documents": len(texts), "bytes": size, "tokens": len(ids) // np.dtype(dtype).itemsize}


@functools.lru_cache(maxsize=1)  # a process keeps its words from one shard to the next
def text_encoder(tok, dtype):
    """A function from a text to the bytes of tok.encode(text)."""
    encode = lambda text: np.array(tok.encode(text), dtype).tobytes()  # noqa: E731
    # Where no piece has a space ("▁") inside it, BPE merges none: a text is its words, most seen before.
    by_words = tok.kind == "sentencepiece" and tok.encode(" a  b ") == tok.encode("a") + tok.encode("b")
    if not by_words or any("▁" in tok.piece(i)[1:] for i in range(tok.n_words)):
        return encode
    encode_again = functools.lru_cache(maxsize=100_000)(encode)
    encode_word = lambda word: (encode_again if len(word) < 20 else encode)(word)  # noqa: E731
    return lambda text: encode(text) if "▁" in text else b"".join(map(encode_word, text.split(" ")))


def write_shards(folder, jobs, process, tokenizer_path, workers, **extra):
    """
    Write a shard for each job, in a pool of processes, and meta.json, which says what they are, with extra;
    returns it. While sources and tokenizer stay the same, a shard is not made again: a killed run resumes.
    jobs are [{"name": "data07", "path": a source file, ...}]. process(job, tok, dtype) -> (ids as bytes, mask
    as a byte for each id or None, counts); the counts are those in COUNTS, and any others.
    """
    tok = Tokenizer(tokenizer_path)
    states = {job["path"]: os.stat(job["path"]) for job in jobs}
    record = {  # where it differs from the last one, all shards are made again
        "sources": {os.path.basename(path): [s.st_size, s.st_mtime_ns] for path, s in states.items()},
        "tokenizer": os.path.relpath(tokenizer_path, folder),  # the two may be moved together
        "tokenizer_fingerprint": tok.fingerprint(),
        "vocab_size": tok.n_words,
        "dtype": "uint16" if tok.n_words <= 65536 else "uint32",
        **extra,
    }
    path = f"{folder}/meta.json"
    old_meta = load_meta(path)
    sizes = {name: os.path.getsize(f"{folder}/{name}") for name in glob.glob("*", root_dir=folder)}
    if not old_meta and any(name.endswith(".bin") for name in sizes):
        raise InputError(f"{folder} holds shards, and no meta.json that says what they are: move them away")
    shards = old_meta.get("shards", {}) if record.items() <= old_meta.items() else {}
    shards = {name: counts for name, counts in shards.items() if counts["files"].items() <= sizes.items()}
    missing = [job for job in jobs if job["name"] not in shards]
    if not missing and "splits" in old_meta:
        print(f"{folder} is up to date")
        return old_meta
    if "splits" in old_meta:
        print(f"{folder} is of other text, or of another tokenizer, or not complete: making it again")
    meta = {**record, "unfinished": True, "shards": shards}
    write_json(path, meta)
    for name in sizes:
        if re.fullmatch(r"data\d+\.(bin|mask)", name) and name.split(".")[0] not in shards:
            os.remove(f"{folder}/{name}")
    make = functools.partial(make_shard, process, tokenizer_path, record["dtype"], folder)
    with ProcessPoolExecutor(workers, initializer=exit_with_parent) as pool:
        for job, counts in zip(tqdm(missing, "pretokenize", unit="shard"), pool.map(make, missing)):
            shards[job["name"]] = counts
            write_json(path, meta)
    first, *others = sorted(shards)
    if not shards[first]["documents"]:
        raise InputError(f"{folder}: there is no document in {first}, the part to validate on")
    meta = {**record, "splits": {}, "shards": dict(sorted(shards.items()))}
    for split, names in (("val", [first]), ("train", others)):
        sums = {key: sum(shards[name][key] for name in names) for key in COUNTS}
        numbers = ", ".join(f"{value:,} {key}" for key, value in sums.items())
        print(f"{folder}, {split}: {numbers}, {sums['bytes'] / max(1, sums['tokens']):.2f} bytes per token")
        meta["splits"][split] = sums
    write_json(path, meta)
    return meta


def exit_with_parent():
    """Let this process of a pool end when its parent is killed; otherwise it would wait for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: parent.join() or os._exit(1), daemon=True).start()


def make_shard(process, tokenizer_path, dtype, folder, job):
    """Process a job and write its files, the .bin last; returns the counts. Runs in a process of the pool."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads inside each process are slower
    ids, mask, counts = process(job, open_tokenizer(tokenizer_path), dtype)
    files = {f"{job['name']}{end}": data for end, data in ((".mask", mask), (".bin", ids)) if data}
    if not files:
        tqdm.write(f"{job['path']}: there is no document for {job['name']}", file=sys.stderr)
    for name, content in files.items():
        with atomic_write(f"{folder}/{name}", "wb") as f:
            f.write(content)
    return {**counts, "files": {name: len(content) for name, content in files.items()}}


def load_meta(path):
    """The content of a meta.json, or {} where there is none. InputError where it is not as it was written."""
    meta = read_json(path) if os.path.exists(path) else {}
    with as_input_error(f"{path} is broken: remove its folder, and run pretokenize again"):
        if meta.get("dtype", "uint16") not in ("uint16", "uint32"):
            raise TypeError(f"its dtype is {meta['dtype']!r}")
        for name in META.keys() & meta.keys():
            if type(meta[name]) is not META[name] or (META[name] is int and meta[name] < 1):
                raise TypeError(f"its {name} is {meta[name]!r}")
        shards = meta.get("shards", {}).values()
        for counts in (*shards, *meta.get("splits", {}).values()):
            sum(counts[name] for name in COUNTS)
        sum(len(counts["files"].items()) for counts in shards)
    return meta


def read_meta(folder, vocab_size=None):
    """meta.json of a folder (llama2.c has none), and its shards as "paths". InputError: other vocabulary."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    meta = {"dtype": "uint16", **load_meta(f"{folder}/meta.json")}
    shards = [name for name in names if re.fullmatch(r"data\d+\.bin", name)]
    if {"train.bin", "val.bin"} <= set(names):
        shards = ["val.bin", "train.bin"]  # nanoGPT's
    if meta.get("unfinished") or not shards:
        raise InputError(f"no finished shards in {folder}: run pretokenize (Chinese: prepare_data.py's)")
    sizes = {name: os.path.getsize(f"{folder}/{name}") for name in names}
    if any(not counts["files"].items() <= sizes.items() for counts in meta.get("shards", {}).values()):
        raise InputError(f"{folder} is not as it was written: run pretokenize again")
    if "meta.json" not in names:
        print_once(f"{folder} has no meta.json: taking its shards for llama2.c's or nanoGPT's, uint16")
    if vocab_size and meta.get("vocab_size", vocab_size) != vocab_size:
        raise InputError(f"{folder} holds ids of a vocabulary of {meta['vocab_size']}, not {vocab_size}")
    return {**meta, "paths": [f"{folder}/{name}" for name in shards]}


def shard_folder(vocab_size, vocab_source, data_dir="data"):
    """'custom' -> data/tok4096; 'llama2' -> beside the stories, as in llama2.c; else vocab_source itself."""
    folders = {"custom": f"{data_dir}/tok{vocab_size}", "llama2": f"{data_dir}/{STORIES}"}
    return folders.get(vocab_source, vocab_source)


class PretokDataset(torch.utils.data.Dataset):
    """
    The chunks of a split ('train': all shards but the first; 'val' or 'test': the first), memory-mapped: item
    i is (x, y), int64 of (max_seq_len,), where y is x one token later; in shards for fine-tuning (x, y,
    documents), where y is -1 for what is not learned, and documents numbers the conversations of the row.
    start_id (BOS): a chunk begins at its first one; in validation, its last story, cut off, does not count.
    """

    def __init__(self, split, max_seq_len, vocab_size, vocab_source, data_dir="data", seed=1337, start_id=-1):
        self.max_seq_len = max_seq_len
        self.start_id = start_id
        self.counts_all = split == "train"
        self.vocab_size = vocab_size
        self.seed = seed
        self._order = {}
        self.folder = shard_folder(vocab_size, vocab_source, data_dir)
        self.meta = read_meta(self.folder, vocab_size)
        self.paths = self.meta["paths"][1:] if split == "train" else self.meta["paths"][:1]
        self.masked = "row_len" in self.meta  # shards for fine-tuning
        row_len = self.meta.get("row_len", max_seq_len)
        if row_len != max_seq_len:
            raise InputError(f"{self.folder} has rows of {row_len}: give --max_seq_len={row_len}")
        self.stride = max_seq_len + self.masked  # chunks of running text share a token, rows do not
        self.ids = [self._open(path, self.meta["dtype"]) for path in self.paths]
        self.masks = [self._open(path[:-4] + ".mask", "uint8") for path in self.paths if self.masked]
        if self.masked and [*map(len, self.ids)] != [*map(len, self.masks)]:
            raise InputError(f"{self.folder}: a .mask is not as long as its .bin: make the shards again")
        self.starts = np.cumsum([0, *(max(0, len(i) - (not self.masked)) // self.stride for i in self.ids)])
        if not len(self):
            raise InputError(f"{self.folder} has no sequence of {max_seq_len} + 1 tokens for {split}")

    def _open(self, path, dtype):
        with as_input_error(f"{path} cannot be read as {dtype}"):
            dtype = np.dtype(dtype).newbyteorder("<")
            numbers = np.memmap(path, dtype, mode="r") if os.path.getsize(path) else np.empty(0, dtype)
        if len(numbers) <= self.max_seq_len:
            print_once(f"{path} is shorter than a sequence of {self.max_seq_len} + 1 tokens: left out")
        return numbers

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        start = int(i - self.starts[shard]) * self.stride
        begins = np.flatnonzero(self.ids[shard][start : start + self.stride] == self.start_id)
        if len(begins):
            start = min(start + int(begins[0]), len(self.ids[shard]) - self.max_seq_len - 1)
        chunk = slice(start, start + self.max_seq_len + 1)
        ids = self.ids[shard][chunk].astype(np.int64)  # (T + 1)
        if ids.max() >= self.vocab_size:
            raise InputError(f"{self.folder}: id {ids.max()} is outside the vocabulary of {self.vocab_size}")
        x, y = torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])
        if not self.masked:
            ends = [] if self.counts_all else np.flatnonzero(ids[1:] == self.start_id)
            return x, y.where(torch.arange(len(y)) <= ends[-1], -1) if len(ends) else y
        mask = torch.from_numpy(self.masks[shard][chunk].astype(np.int64))
        return x, y.where(mask[1:] == LEARNED, -1), (mask == CHAT_START).cumsum(0)[:-1]

    def __getitems__(self, positions):
        """What DataLoader(dataset, batch_size=8), the tutorial's call, reads: a shuffled epoch."""
        return [self[int(self.order(0)[p])] for p in positions]

    def __iter__(self):
        return (self[i] for (i,) in self.batches(1))  # without end, shuffled

    def order(self, epoch):
        """How an epoch orders the chunks, a function of (seed, epoch) alone; in memory, 8 bytes for each."""
        if epoch not in self._order:
            self._order = {epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self))}
        return self._order[epoch]

    def batches(self, batch_size, start=0, rank=0, world_size=1):
        """
        Endless lists of chunk numbers. Of one order of batches rank r reads r, r + world_size, ..., from its
        `start`-th on: each chunk comes once an epoch, to one rank, and a run resumes anywhere.
        """
        batch = start * world_size + rank
        while True:
            positions = range(batch * batch_size, (batch + 1) * batch_size)  # counted through all epochs
            yield [int(self.order(p // len(self))[p % len(self)]) for p in positions]
            batch += world_size


class Task:
    @staticmethod
    def iter_batches(batch_size, device, num_workers=0, start=0, **dataset_kwargs):  # num_workers: none
        """Endless (x, y) or (x, y, documents), each (batch_size, max_seq_len), from the `start`-th on."""
        dataset = PretokDataset(**dataset_kwargs)
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        cuda = str(device).startswith("cuda")
        for chunks in dataset.batches(batch_size, start, rank, world_size):
            batch = [torch.stack(tensors) for tensors in zip(*(dataset[i] for i in chunks))]
            # From pinned memory, the copy to a GPU runs while Python continues.
            yield [(t.pin_memory() if cuda else t).to(device, non_blocking=cuda) for t in batch]


if __name__ == "__main__":
    given = override(globals(), COMMANDS)
    globals()[given["command"]]()
