"""
The data: from stories in JSON to batches of token ids, one command a stage.

    python tinystories.py download        TinyStories, 1.5 GB, from a hub     -> data/TinyStories_all_data/
    python tinystories.py download --small       or 22.5 MB of it             -> the same
    python tinystories.py synthesize      without a network: synthetic ones   -> the same
    python tinystories.py train_vocab     a sentencepiece BPE tokenizer       -> data/tok4096.model
    python tinystories.py pretokenize     the stories' ids, shard by shard    -> data/tok4096/

`pretokenize` first runs what is missing, so it alone is enough. A text of your own:

    python tinystories.py pretokenize --input_path=my.txt --data_dir=data_mine --vocab_size=1024
    python train.py --data_dir=data_mine --vocab_size=1024

A shard is token ids back to back (uint16, little-endian; uint32 above 65,536 ids), each story begun by BOS;
llama2.c reads and writes the same. Shard 0 is for validation, everywhere and always: no tokenizer and no
model learns from it. TinyStories: Eldan & Li 2023, arXiv:2305.07759.
"""

import collections
import contextlib
import functools
import glob
import gzip
import io
import multiprocessing
import os
import re
import shutil
import sys
import tarfile
import threading
import zlib
from array import array
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import InputError, atomic_write, cpu_count, first_line, override, read_json, write_json
from reader import get_text, has_types_of, read_values
from tokenizer import Tokenizer

data_dir = "data"  # the folder for all of it
vocab_size = 4096  # at least 0: of the tokenizer; 0 is Llama 2's own, 32,000, given by --tokenizer
tokenizer = ""  # a tokenizer to take instead of data/tok<vocab_size>.model
input_path = ""  # a text of your own to make stories of, .txt, .jsonl or .json: see extras/own_text.py
text_key = "text"  # the field of that .jsonl or .json that holds the text
encoding = "utf-8"  # of that text: utf-8, gb18030, utf-16, ...
small = False  # download: only the 22.5 MB
num_shards = 10  # at least 1: train_vocab: how many shards to learn from, beginning with data01
megabytes = 20.0  # above 0: synthesize: how much
seed = 42  # synthesize: another seed tells other stories
workers = cpu_count()  # at least 1: processes

COMMANDS = ("download", "synthesize", "train_vocab", "pretokenize")
LEARNED, CHAT_START = 1, 2  # in a .mask: an id that is learned, and one with which a conversation begins
STORIES = "TinyStories_all_data"
SHARDS = 50  # as many as the original has
COUNTS = {"documents": 0, "bytes": 0, "tokens": 0}
ROW_COUNTS = {"rows": 0, "tokens_used": 0, "truncated": 0}  # of shards for fine-tuning
META = {  # values of the types that stand in a meta.json
    "dtype": "uint16", "vocab_size": 0, "tokenizer": "", "row_len": 0, "limit_bpb": 0.0, "shards": {},
    "splits": {"val": COUNTS, "train": COUNTS},
}  # fmt: skip
print_once = functools.cache(functools.partial(print, file=sys.stderr))


# --------------------------------------------------------------------------------------------------------
# stories: data/TinyStories_all_data/dataNN.json, each a list of {"story": ...}


def download():
    """fetch TinyStories (--small: 22.5 MB of it)"""
    name = "TinyStoriesV2-GPT4-valid.txt" if small else f"{STORIES}.tar.gz"
    with new_stories() as folder:
        path = download_from_hub("roneneldan/TinyStories", name, data_dir)
        if small:
            stories = [{"story": text.strip(), "source": "GPT-4"} for text in read_values(path, get_text)]
            for i in range(SHARDS):
                write_json(f"{folder}/data{i:02}.json", stories[i::SHARDS])
        else:
            unpack(path, folder)


def unpack(path, folder):
    """Unpack a .tar.gz by hand: some Pythons (3.11.3 and older) have no filter for hostile names."""
    try:
        with gzip.open(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):  # no links, no folders
                name = member.name.removeprefix("./")
                if not re.fullmatch(r"[\w.-]+", name):
                    raise tarfile.TarError(f"{name!r} leads out of the folder")
                with open(f"{folder}/{name}", "wb") as f:
                    shutil.copyfileobj(tar.extractfile(member), f)
            while file.read(1 << 20):  # to the checksum at its end
                pass
        if not glob.glob(f"{glob.escape(folder)}/data*.json"):
            raise tarfile.TarError("it holds no stories")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be unpacked: {first_line(error)}") from None


def download_from_hub(repo, name, folder):
    """Get a file of a dataset from the Hugging Face hub, or the mirror that HF_ENDPOINT names; its path."""
    from huggingface_hub import hf_hub_download  # comes with tokenizers

    try:
        return hf_hub_download(repo, name, repo_type="dataset", local_dir=folder)
    except Exception as error:  # the hub, the connection and the disk each have errors of their own
        raise InputError(f"could not download {name} of {repo}: {first_line(error)}") from None


def synthesize():
    """write synthetic stories, for a machine with no network"""
    from extras.synthetic_stories import write_stories

    with new_stories() as folder:
        write_stories(folder, SHARDS, seed, megabytes, workers)


@contextlib.contextmanager
def new_stories():
    """
    A folder to fill, which becomes data/TinyStories_all_data when all is written. InputError where that one
    is there: no command replaces or deletes stories.
    """
    folder = f"{data_dir}/{STORIES}"
    if os.path.exists(folder):
        raise InputError(f"{folder} is there already: use it as it is, or give another --data_dir")
    unfinished = folder + ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
    try:
        yield unfinished
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{len(story_files())} files of stories in {folder}")


def ensure_stories():
    """Have stories: the text of input_path, or those that are there, or TinyStories, or synthetic ones."""
    if input_path:
        from extras.own_text import write_own_text

        write_own_text(input_path, text_key, encoding, f"{data_dir}/{STORIES}", num_shards + 1)
    if story_files():
        return
    print(f"no stories in {data_dir}/{STORIES}: downloading TinyStories")
    try:
        download()
    except InputError as error:
        print(f"\n*** {error}\n*** Taking SYNTHETIC stories; for real ones: tinystories.py download\n")
        synthesize()


def story_files():
    return sorted(glob.glob(f"{glob.escape(data_dir)}/{STORIES}/data*.json"))


def read_texts(path):
    """The stories of a file, as texts."""
    return [text.strip() for text in read_values(path, lambda item: get_text(item, "story"))]


# --------------------------------------------------------------------------------------------------------
# tokenizer


def train_vocab():
    """learn a BPE vocabulary of --vocab_size pieces from the stories"""
    import sentencepiece

    if vocab_size == 0:
        raise InputError("Llama 2's vocabulary is given by --tokenizer=PATH, not trained")
    if vocab_size < 270:
        raise InputError(f"--vocab_size={vocab_size} has no room for 256 bytes, 3 special tokens and pieces")
    ensure_stories()
    files = story_files()[1 : num_shards + 1]  # not the validation shard
    print(f"training a vocabulary of {vocab_size} on {len(files)} files of stories")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=vocabulary_lines(files),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            self_test_sample_size=0,
            character_coverage=1.0,
            num_threads=workers,
            split_digits=True,  # a number is its digits
            allow_whitespace_only_pieces=True,
            byte_fallback=True,  # a character without a piece is its bytes
            unk_surface=r" \342\201\207 ",
            normalization_rule_name="identity",  # the text stays as it is
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1] or "there is no text to learn from"
        raise InputError(f"sentencepiece: {reason}") from None
    with atomic_write(tokenizer_path(), "wb") as f:
        f.write(model.getvalue())
    print(f"wrote {tokenizer_path()}")


def vocabulary_lines(files):
    """
    The lines of stories to learn a vocabulary from. sentencepiece leaves out lines of more than 4,192 bytes,
    so long ones are cut, at spaces if there are some. Where the vocabulary has no room for all characters,
    the rarest become spaces here, and in an encoded text bytes: half of the room is for pieces of several.
    """
    characters = collections.Counter(c for path in files for text in read_texts(path) for c in text)
    room = vocab_size - 259  # beside 256 bytes, <unk>, BOS and EOS
    rare = characters.most_common()[room // 2 :] if len(characters) > room else []
    rare_to_space = {ord(c): " " for c, _ in rare}
    for path in files:
        for line in "\n".join(read_texts(path)).translate(rare_to_space).splitlines():
            yield from re.findall(r".{1,1000}(?!\S)|.{1,1000}", line) if len(line) > 1000 else [line]


def tokenizer_path():
    return tokenizer or f"{data_dir}/tok{vocab_size}.model"


# --------------------------------------------------------------------------------------------------------
# shards


def pretokenize(vocab_size=None):
    """turn the stories into shards of token ids"""
    if vocab_size is not None:  # called from Python, as the tutorial does
        globals()["vocab_size"] = vocab_size
    vocab_size = globals()["vocab_size"]
    ensure_stories()
    if not os.path.exists(tokenizer_path()):
        train_vocab()
    tok = Tokenizer(tokenizer_path())
    if vocab_size and tok.n_words != vocab_size:
        raise InputError(f"--vocab_size={vocab_size}, but {tok.name} has {tok.n_words} pieces")
    folder = shard_folder(vocab_size, "custom" if vocab_size else "llama2", data_dir)
    jobs = [{"name": f"data{i:02}", "path": path} for i, path in enumerate(story_files())]
    corpus = f"{data_dir}/{STORIES}/corpus.json"  # what is known of the stories as a whole
    known = read_json(corpus) if os.path.exists(corpus) else {}
    write_shards(folder, jobs, process_shard, tokenizer_path(), workers, **known)


def process_shard(job, tok, dtype):
    """The ids of a file of stories, as write_shards wants them: (ids, no mask, counts)."""
    ids, counts = encode_documents(read_texts(job["path"]), tok, dtype)
    return ids, None, counts


def encode_documents(texts, tok, dtype, eos=False):
    """
    Texts -> the bytes of BOS, a text's ids, (EOS,) BOS, ..., and counts. A tokenizer without BOS ends each
    text with EOS. InputError where it has neither: nothing would tell where a text ends.
    """
    if tok.bos_id < 0 and tok.eos_id < 0:
        raise InputError(f"{tok.name} has neither BOS nor EOS to stand between two documents")
    encode = text_encoder(tok, dtype)
    begin = np.array([tok.bos_id] if tok.bos_id >= 0 else [], dtype).tobytes()
    end = np.array([tok.eos_id] if tok.bos_id < 0 or (eos and tok.eos_id >= 0) else [], dtype).tobytes()
    counts = {"documents": 0, "bytes": 0}
    parts = []
    for text in texts:
        parts += (begin, encode(text), end)
        counts["documents"] += 1
        counts["bytes"] += len(tok.normalize(text).encode("utf-8"))
    ids = b"".join(parts)
    return ids, {**counts, "tokens": len(ids) // np.dtype(dtype).itemsize}


@functools.lru_cache(maxsize=1)  # a process keeps its words from one shard to the next
def text_encoder(tok, dtype):
    """
    A function from a text to its ids as bytes, the same ids as tok.encode(text).

    sentencepiece's BPE never merges across a space, where no piece has a space inside. So a text is the
    pieces of its words, end to end, and nearly every word has been encoded before.
    """

    def encode(text):
        return array({"uint16": "H", "uint32": "I"}[dtype], tok.encode(text)).tobytes()

    by_words = tok.kind == "sentencepiece" and tok.encode(" a  b ") == tok.encode("a") + tok.encode("b")
    if not by_words or any("▁" in tok.piece(i)[1:] for i in range(tok.n_words)):
        return encode
    encode_again = functools.lru_cache(maxsize=100_000)(encode)
    encode_word = lambda word: (encode_again if len(word) < 20 else encode)(word)  # noqa: E731
    # "▁" is how sentencepiece writes a space; in a text it is rare
    return lambda text: encode(text) if "▁" in text else b"".join(map(encode_word, text.split(" ")))


def write_shards(folder, jobs, process, tokenizer_path, workers, **extra):
    """
    Write a shard for each job, with a pool of processes, and meta.json, which says what they are; returns its
    content. While sources and tokenizer stay the same, a shard is not made again: a killed run resumes.

    jobs     [{"name": "data07", "path": a source file, ...}]
    process  process(job, tok, dtype) -> (ids, mask or None, counts), the first two as bytes, with a byte of
             mask for each id; counts has "documents", "bytes", "tokens", and any other counts
    extra    goes into meta.json

    InputError where the folder holds shards that were not written here.
    """
    tok = Tokenizer(tokenizer_path)
    record = {
        "sources": {os.path.basename(job["path"]): file_state(job["path"]) for job in jobs},
        "tokenizer": os.path.relpath(tokenizer_path, folder),  # the two may be moved together
        "tokenizer_fingerprint": tok.fingerprint(),
        "vocab_size": tok.n_words,
        "dtype": "uint16" if tok.n_words <= 65536 else "uint32",
        **extra,
    }
    path = f"{folder}/meta.json"
    old_meta = load_meta(path)
    if not old_meta and glob.glob(f"{glob.escape(folder)}/*.bin"):
        raise InputError(f"{folder} holds shards, and no meta.json that says what they are: move them away")
    old_shards = old_meta.get("shards", {})
    shards = old_shards if record.items() <= old_meta.items() else {}
    shards = {name: counts for name, counts in shards.items() if files_are_there(folder, name, counts)}
    missing = [job for job in jobs if job["name"] not in shards]
    if not missing and "splits" in old_meta:
        print(f"{folder} is up to date")
        return old_meta
    if "splits" in old_meta:
        print(f"{folder} is of other text, or of another tokenizer, or not complete: making it again")
    meta = {**record, "unfinished": True, "shards": shards}
    write_json(path, meta)
    make = functools.partial(make_shard, process, tokenizer_path, record["dtype"], folder)
    with ProcessPoolExecutor(workers, initializer=exit_with_parent) as pool:
        results = tqdm(pool.map(make, missing), "pretokenize", len(missing), unit="shard")
        for job, counts in zip(missing, results):
            shards[job["name"]] = counts
            write_json(path, meta)
    for name in old_shards.keys() - shards.keys():  # of an earlier, larger corpus
        for ending in old_shards[name]["files"]:
            os.remove(f"{folder}/{name}{ending}")
    meta = {**record, "splits": sum_splits(folder, shards), "shards": dict(sorted(shards.items()))}
    write_json(path, meta)
    return meta


def sum_splits(folder, shards):
    """{"val": the counts of the first shard, "train": of the others}, which are printed, too."""
    first, *others = sorted(shards)
    splits = {}
    for split, names in (("val", [first]), ("train", others)):
        splits[split] = {key: sum(shards[n][key] for n in names) for key in ("documents", "bytes", "tokens")}
        numbers = ", ".join(f"{value:,} {key}" for key, value in splits[split].items())
        bytes_per_token = splits[split]["bytes"] / max(1, splits[split]["tokens"])
        print(f"{folder}, {split}: {numbers}, {bytes_per_token:.2f} bytes per token")
    if not splits["val"]["documents"]:
        raise InputError(f"{folder}: there is no document in {first}, the part to validate on")
    return splits


def file_state(path):
    """[size, time of the last change]: when a source's differs, its shards are made again."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def files_are_there(folder, name, counts):
    """Whether the files of a shard are there, with the sizes that they had."""
    paths = {f"{folder}/{name}{ending}": size for ending, size in counts["files"].items()}
    return all(os.path.exists(path) and os.path.getsize(path) == size for path, size in paths.items())


def exit_with_parent():
    """Let this process of a pool end when its parent is killed; otherwise it would wait for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: parent.join() or os._exit(1), daemon=True).start()


open_tokenizer = functools.cache(Tokenizer)  # each process of the pool opens it once


def make_shard(process, tokenizer_path, dtype, folder, job):
    """Process a job and write its files, the .bin last; returns the counts. Runs in a process of the pool."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads inside each process are slower
    ids, mask, counts = process(job, open_tokenizer(tokenizer_path), dtype)
    files = {ending: content for ending, content in ((".mask", mask), (".bin", ids)) if content}
    if not files:
        tqdm.write(f"{job['path']}: there is no document for {job['name']}", file=sys.stderr)
    for ending, content in files.items():
        with atomic_write(f"{folder}/{job['name']}{ending}", "wb") as f:
            f.write(content)
    return {**counts, "files": {ending: len(content) for ending, content in files.items()}}


def shard_paths(folder):
    """The paths of a folder's shards: dataNN.bin, of which the first is for validation, or nanoGPT's two."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    if {"train.bin", "val.bin"} <= set(names):
        return [f"{folder}/val.bin", f"{folder}/train.bin"]
    return [f"{folder}/{name}" for name in names if re.fullmatch(r"data\d+\.bin", name)]


def load_meta(path):
    """The content of a meta.json, or {} where there is none. InputError where pretokenize wrote no such."""
    meta = read_json(path) if os.path.exists(path) else {}
    example = {name: META[name] for name in META.keys() & {*meta, "dtype", "vocab_size"}}
    known = {**COUNTS, **(ROW_COUNTS if "row_len" in meta else {}), "files": {}}
    right = not meta or (has_types_of(meta, example) and meta["dtype"] in ("uint16", "uint32"))
    for name, counts in meta.get("shards", {}).items() if right else ():  # files are removed by these names
        right = right and re.fullmatch(r"data\d+", name) and has_types_of(counts, known)
        right = right and counts["files"].keys() <= {".bin", ".mask"}
    if not right or (meta.get("splits") and meta["splits"]["val"]["bytes"] < 1):
        raise InputError(f"{path} is broken, pretokenize writes others: remove its folder, make it again")
    return meta


def read_meta(folder, vocab_size=None):
    """The meta.json of a folder of shards; a folder without is llama2.c's. InputError: other vocabulary."""
    path = f"{folder}/meta.json"
    meta = load_meta(path) or {"dtype": "uint16"}
    if meta.get("unfinished") or not shard_paths(folder):
        makers = "tinystories.py for stories and text, prepare_data.py for Chinese"
        raise InputError(f"no finished shards in {folder}: run pretokenize ({makers})")
    if len(meta) == 1:
        print_once(f"{folder} has no meta.json: taking its shards for llama2.c's or nanoGPT's, uint16")
    if vocab_size and meta.get("vocab_size", vocab_size) != vocab_size:
        raise InputError(f"{folder} holds ids of a vocabulary of {meta['vocab_size']}, not {vocab_size}")
    return meta


def shard_folder(vocab_size, vocab_source, data_dir="data"):
    """'custom' -> data/tok4096; 'llama2' -> beside the stories, as in llama2.c; else vocab_source itself."""
    known = {"custom": f"tok{vocab_size}", "llama2": STORIES}
    return f"{data_dir}/{known[vocab_source]}" if vocab_source in known else vocab_source


# --------------------------------------------------------------------------------------------------------
# batches


class PretokDataset(torch.utils.data.Dataset):
    """
    The chunks of a split, read from memory-mapped shards: item i is (x, y), int64 of (max_seq_len,), where y
    is x one token later. `len` is one epoch. In shards for fine-tuning y is -1 where there is nothing to
    learn, and an item is (x, y, documents): which of the conversations in the row each token belongs to.

    split         'train': all shards but the first; 'val' or 'test': the first
    vocab_source  'custom': data/tok<vocab_size>; 'llama2': beside the stories; or a folder of shards
    InputError where the shards are not what was asked for, or hold ids outside the vocabulary.
    """

    def __init__(self, split, max_seq_len, vocab_size, vocab_source, data_dir="data", seed=1337):
        self.max_seq_len = max_seq_len
        self.vocab_size = vocab_size
        self.seed = seed
        self._order = {}
        self.folder = shard_folder(vocab_size, vocab_source, data_dir)
        self.meta = read_meta(self.folder, vocab_size)
        row_len = self.meta.get("row_len")
        self.masked = row_len is not None  # shards for fine-tuning
        if self.masked and row_len != max_seq_len:
            raise InputError(f"{self.folder} has rows of {row_len}: give --max_seq_len={row_len}")
        self.stride = max_seq_len + self.masked  # chunks of running text share a token, rows do not
        paths = shard_paths(self.folder)
        self.paths = paths[1:] if split == "train" else paths[:1]
        self.ids = [self._open(path, self.meta["dtype"]) for path in self.paths]
        self.masks = [self._open(path[:-4] + ".mask", "uint8") for path in self.paths if self.masked]
        if self.masked and [*map(len, self.ids)] != [*map(len, self.masks)]:
            raise InputError(f"{self.folder}: a .mask is not as long as its .bin: make the shards again")
        self.ends = np.cumsum([max(0, len(ids) - (not self.masked)) // self.stride for ids in self.ids])
        if not len(self):
            raise InputError(f"{self.folder} has no sequence of {max_seq_len} + 1 tokens for {split}")

    def _open(self, path, dtype):
        try:
            empty = os.path.getsize(path) == 0  # which cannot be mapped
            numbers = np.zeros(0) if empty else np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as {dtype}: {error}") from None
        if len(numbers) <= self.max_seq_len:
            print_once(f"{path} is shorter than a sequence of {self.max_seq_len} + 1 tokens: left out")
        return numbers

    def __len__(self):
        return int(self.ends[-1]) if self.paths else 0

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = int(np.searchsorted(self.ends, i, side="right"))
        start = int(i - (self.ends[shard - 1] if shard else 0)) * self.stride
        chunk = slice(start, start + self.max_seq_len + 1)
        ids = self.ids[shard][chunk].astype(np.int64)  # (T + 1)
        if ids.max() >= self.vocab_size:
            raise InputError(f"{self.folder}: id {ids.max()} is outside the vocabulary of {self.vocab_size}")
        ids = torch.from_numpy(ids)
        x = ids[:-1]
        y = ids[1:]
        if not self.masked:
            return x, y
        mask = torch.from_numpy(self.masks[shard][chunk].astype(np.int64))
        y = y.where(mask[1:] == LEARNED, -1)
        documents = (mask == CHAT_START).cumsum(0)[:-1]
        return x, y, documents

    def __getitems__(self, positions):
        """What DataLoader(dataset, batch_size=8), the tutorial's call, reads: a shuffled epoch."""
        return [self[int(self.order(0)[p])] for p in positions]

    def __iter__(self):
        """The items without end, shuffled."""
        return (self[i] for (i,) in self.batches(1))

    def order(self, epoch):
        """The order in which an epoch reads the chunks: a permutation, a function of (seed, epoch) alone."""
        if epoch not in self._order:
            self._order = {epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self))}
        return self._order[epoch]

    def batches(self, batch_size, start=0, rank=0, world_size=1):
        """
        Endless lists of batch_size chunk numbers. The run's batches stand in one order over all epochs, and
        rank r reads the batches r, r + world_size, ... of them, from the `start`-th of its own on. So each
        chunk comes once an epoch, no rank reads what another reads, and a run can resume anywhere.
        """
        batch = start * world_size + rank
        while True:
            positions = range(batch * batch_size, (batch + 1) * batch_size)  # counted through all epochs
            yield [int(self.order(p // len(self))[p % len(self)]) for p in positions]
            batch += world_size


class Task:
    @staticmethod
    def iter_batches(batch_size, device, num_workers=0, start=0, **dataset_kwargs):
        """
        Endless (x, y) or (x, y, documents), each (batch_size, max_seq_len) on `device`. start=N resumes after
        N batches of this rank; the other arguments are PretokDataset's. num_workers, the tutorial's, is
        ignored: a sequence takes 0.02 ms to read.
        """
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
