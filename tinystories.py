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
model learns from it. meta.json beside the shards says what they were made from.

TinyStories: Eldan & Li 2023, arXiv:2305.07759. `Task.iter_batches` is what train.py reads.
"""

import contextlib
import functools
import glob
import io
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
import threading
from array import array
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import InputError, atomic_write, first_line, override
from tokenizer import Tokenizer

data_dir = "data"  # the folder for all of it
vocab_size = 4096  # of the tokenizer; 0: Llama 2's own, 32,000, given by --tokenizer
tokenizer = ""  # a tokenizer to take instead of data/tok<vocab_size>.model
input_path = ""  # a text of your own to make stories of, .txt, .jsonl or .json: see extras/own_text.py
text_key = "text"  # the field of that .jsonl or .json that holds the text
small = False  # download: only the 22.5 MB
num_shards = 10  # train_vocab: how many shards to learn from, beginning with data01
megabytes = 20.0  # synthesize: how much
seed = 42  # synthesize: another seed tells other stories
workers = os.cpu_count() or 1  # processes

COMMANDS = ("download", "synthesize", "train_vocab", "pretokenize")
LEARNED, BEGINS = 1, 2  # in a .mask: an id that is learned, and one with which a conversation begins
STORIES = "TinyStories_all_data"
SHARDS = 50  # as many as the original has
MAKERS = "tinystories.py for stories and text, prepare_data.py for Chinese"


# --------------------------------------------------------------------------------------------------------
# stories: data/TinyStories_all_data/dataNN.json, each a list of {"story": ...}


def download():
    """fetch TinyStories (--small: 22.5 MB of it)"""
    name = "TinyStoriesV2-GPT4-valid.txt" if small else f"{STORIES}.tar.gz"
    with new_stories() as folder:
        path = download_from_hub("roneneldan/TinyStories", name, data_dir)
        if small:
            with open(path, encoding="utf-8") as f:
                texts = f.read().split("<|endoftext|>")
            stories = [{"story": text.strip(), "source": "GPT-4"} for text in texts if text.strip()]
            for i in range(SHARDS):
                write_json(f"{folder}/data{i:02}.json", stories[i::SHARDS])
        else:
            with tarfile.open(path) as tar:
                tar.extractall(folder, filter="data")  # refuses names that lead out of the folder


def download_from_hub(repo, name, folder):
    """Get a file of a dataset from the Hugging Face hub, or the mirror that HF_ENDPOINT names; its path."""
    from huggingface_hub import hf_hub_download  # comes with tokenizers

    try:
        return hf_hub_download(repo, name, repo_type="dataset", local_dir=folder)
    except Exception as error:  # the hub, the connection and the disk each have errors of their own
        raise InputError(f"could not download {name} of {repo}: {first_line(error)}") from None


def synthesize():
    """write synthetic stories, for a machine with no network"""
    from extras.synthetic_stories import limit_bpb, write_shard

    write = functools.partial(write_shard, seed, num_bytes=int(megabytes * 1e6 / SHARDS))
    with new_stories() as folder, ProcessPoolExecutor(workers, initializer=exit_with_parent) as pool:
        shards = tqdm(pool.map(write, range(SHARDS)), "synthesize", SHARDS, unit="shard")
        for i, stories in enumerate(shards):
            write_json(f"{folder}/data{i:02}.json", stories)
            if i == 0:  # what a perfect model would need at most, on the validation stories
                write_json(f"{folder}/corpus.json", {"limit_bpb": round(limit_bpb(stories), 4)})


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
    yield unfinished
    os.rename(unfinished, folder)
    print(f"{len(story_files())} files of stories in {folder}")


def ensure_stories():
    """Have stories: the text of input_path, or those that are there, or TinyStories, or synthetic ones."""
    if input_path:
        from extras.own_text import split_own_text

        with new_stories() as folder:
            for i, stories in enumerate(split_own_text(input_path, text_key, SHARDS)):
                write_json(f"{folder}/data{i:02}.json", stories)
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


def read_texts(path, key="story"):
    """The texts of a .json, a list of {"story": text}; None for what has none. InputError names the place."""
    items = read_json(path)
    if not isinstance(items, list):
        raise InputError(f"{path} is not a list of stories")
    texts = [get_text(item, key) for item in items]
    if None in texts:
        print(f"{path}: story {texts.index(None)} has no text under {key!r}: left out", file=sys.stderr)
    return texts


def get_text(item, key):
    text = item.get(key) if isinstance(item, dict) else None
    if isinstance(text, str) and text.strip():
        return text.strip().encode("utf-8", "ignore").decode()  # JSON can spell half a character
    return None


def parse_json(text, path):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path} is broken at {where}: {error.msg}") from None


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return parse_json(f.read(), path)


def write_json(path, value):
    with atomic_write(path) as f:
        json.dump(value, f, ensure_ascii=False, indent=None if isinstance(value, list) else 1)


# --------------------------------------------------------------------------------------------------------
# tokenizer


def train_vocab():
    """learn a BPE vocabulary of --vocab_size pieces from the stories"""
    import sentencepiece

    if vocab_size <= 0:
        raise InputError("Llama 2's vocabulary is given by --tokenizer=PATH, not trained")
    if not story_files():
        ensure_stories()
    files = story_files()[1 : num_shards + 1]  # not the validation shard
    print(f"training a vocabulary of {vocab_size} on {len(files)} files of stories")
    texts = (text for path in files for text in read_texts(path) if text)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
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
        raise InputError(f"sentencepiece: {str(error).rsplit('] ', 1)[-1]}") from None
    with atomic_write(tokenizer_path(), "wb") as f:
        f.write(model.getvalue())
    print(f"wrote {tokenizer_path()}")


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
    corpus = f"{data_dir}/{STORIES}/corpus.json"  # what is known of the stories; synthesize writes it
    known = read_json(corpus) if os.path.exists(corpus) else {}
    write_shards(folder, jobs, process_shard, tok, tokenizer_path(), workers, **known)


def process_shard(job, tok, dtype):
    """The ids of a file of stories, as write_shards wants them: (ids, no mask, counts)."""
    ids, counts = encode_documents(read_texts(job["path"]), tok, dtype)
    return ids, None, counts


def encode_documents(texts, tok, dtype, eos=False):
    """Texts -> the bytes of BOS, a text's ids, (EOS,) BOS, ..., and counts. None among them is left out."""
    encode = text_encoder(tok, dtype)
    begin = np.array([tok.bos_id] if tok.bos_id >= 0 else [], dtype).tobytes()
    end = np.array([tok.eos_id] if eos and tok.eos_id >= 0 else [], dtype).tobytes()
    counts = {"documents": 0, "bytes": 0, "tokens": 0, "skipped": 0}
    parts = []
    for text in texts:
        if text is None:
            counts["skipped"] += 1
            continue
        parts += (begin, encode(text), end)
        counts["documents"] += 1
        counts["bytes"] += len(tok.normalize(text).encode("utf-8"))
    ids = b"".join(parts)
    counts["tokens"] = len(ids) // np.dtype(dtype).itemsize
    return ids, counts


@functools.lru_cache(maxsize=1)  # a process keeps its words from one shard to the next
def text_encoder(tok, dtype):
    """
    A function from a text to its ids as bytes, the same ids as tok.encode(text).

    sentencepiece's BPE never merges across a space, where no piece has a space inside. So a text is the
    pieces of its words, end to end, and nearly every word has been encoded before.
    """

    def encode(text):
        return np.array(tok.encode_batch([text])[0], dtype).tobytes()

    drops_spaces = tok.kind == "sentencepiece" and tok.encode("a b") == tok.encode(" a  b ")
    if not drops_spaces or any("▁" in tok.piece(i)[1:] for i in range(tok.n_words)):
        return encode
    typecode = {"uint16": "H", "uint32": "I"}[dtype]
    encode_word = functools.cache(lambda word: array(typecode, tok.encode(word)).tobytes())
    # "▁" is how sentencepiece writes a space; in a text it is rare
    return lambda text: encode(text) if "▁" in text else b"".join(map(encode_word, text.split(" ")))


def write_shards(folder, jobs, process, tok, tokenizer_path, workers, **extra):
    """
    Write shards with a pool of processes, and meta.json, which says what they are; returns its content.

    jobs     [{"name": "data07", "path": a source file, ...}]
    process  process(job, tok, dtype) -> (ids, mask or None, counts), the first two as bytes, with a byte of
             mask for each id; counts has "documents", "bytes", "tokens", and what else it likes
    extra    goes into meta.json

    Shards that were made from the same files by the same tokenizer are not made again, so that a run that
    was killed resumes. InputError where the folder holds shards that were not written here.
    """
    record = {
        "sources": {os.path.basename(job["path"]): file_state(job["path"]) for job in jobs},
        "tokenizer": os.path.relpath(tokenizer_path, folder),  # the two may be moved together
        "tokenizer_fingerprint": tok.fingerprint(),
        "vocab_size": tok.n_words,
        "dtype": "uint16" if tok.n_words <= 65536 else "uint32",
        **extra,
    }
    meta_path, partial_path = f"{folder}/meta.json", f"{folder}/meta.partial.json"
    before = next((read_json(path) for path in (partial_path, meta_path) if os.path.exists(path)), None)
    if before is None and glob.glob(f"{glob.escape(folder)}/*.bin"):
        raise InputError(f"{folder} holds shards, and no meta.json that says what they are: move them away")
    shards = before["shards"] if before and record.items() <= before.items() else {}
    shards = {name: counts for name, counts in shards.items() if files_are_there(folder, name, counts)}
    missing = [job for job in jobs if job["name"] not in shards]
    if not missing and os.path.exists(meta_path) and not os.path.exists(partial_path):
        print(f"{folder} is up to date")
        return before
    write_json(partial_path, {**record, "shards": shards})  # from here on the folder is unfinished
    if os.path.exists(meta_path):
        print(f"{folder} is of other text, or of another tokenizer, or not complete: making it again")
        os.remove(meta_path)
    with ProcessPoolExecutor(workers, initializer=init_worker, initargs=(tok.state(),)) as pool:
        futures = {pool.submit(make_shard, job, process, record["dtype"], folder): job for job in missing}
        try:
            for future in tqdm(as_completed(futures), "pretokenize", len(futures), unit="shard"):
                shards[futures[future]["name"]] = future.result()
                write_json(partial_path, {**record, "shards": shards})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for path in glob.glob(f"{glob.escape(folder)}/data*.bin"):  # of an earlier, larger corpus
        if os.path.basename(path)[:-4] not in shards:
            os.remove(path)
    first, *others = sorted(shards)
    meta = {**record, "splits": {}, "shards": dict(sorted(shards.items()))}
    for split, names in (("val", [first]), ("train", others)):
        sums = {key: sum(shards[name][key] for name in names) for key in ("documents", "bytes", "tokens")}
        meta["splits"][split] = sums
        numbers = ", ".join(f"{value:,} {key}" for key, value in sums.items())
        print(f"{folder}, {split}: {numbers}, {sums['bytes'] / max(1, sums['tokens']):.2f} bytes per token")
    write_json(meta_path, meta)
    os.remove(partial_path)
    return meta


def file_state(path):
    """[size, time of the last change]: when a source's differs, its shards are made again."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def files_are_there(folder, name, counts):
    """Whether the files of a shard are there, with the sizes that they had."""
    sizes = {f"{folder}/{name}{ending}": size for ending, size in counts["files"].items()}
    return all(os.path.exists(path) and os.path.getsize(path) == size for path, size in sizes.items())


def init_worker(tokenizer_state):
    """What each process of the pool does first."""
    global worker_tok
    exit_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads inside each process are slower
    worker_tok = Tokenizer(tokenizer_state)


def exit_with_parent():
    """End this process of a pool when the one that started it is killed; otherwise it would wait for ever."""

    def watch():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_shard(job, process, dtype, folder):
    """Process a job and write its files; the .bin last. Runs in a process of the pool."""
    ids, mask, counts = process(job, worker_tok, dtype)
    if not counts["documents"]:
        raise InputError(f"{job['path']}: there is no document in the part for {job['name']}")
    files = {".bin": ids} if mask is None else {".mask": mask, ".bin": ids}
    for ending, content in files.items():
        with atomic_write(f"{folder}/{job['name']}{ending}", "wb") as f:
            f.write(content)
    return {**counts, "files": {ending: len(content) for ending, content in files.items()}}


def read_meta(folder, vocab_size=None):
    """The meta.json of a folder of shards; a folder without is llama2.c's. InputError: other vocabulary."""
    if not glob.glob(f"{glob.escape(folder)}/*.bin") or os.path.exists(f"{folder}/meta.partial.json"):
        raise InputError(f"no finished shards in {folder}: run pretokenize ({MAKERS})")
    if not os.path.exists(f"{folder}/meta.json"):
        print(f"{folder} has no meta.json: taking its shards for llama2.c's, uint16", file=sys.stderr)
        return {"dtype": "uint16"}
    meta = read_json(f"{folder}/meta.json")
    if vocab_size and meta["vocab_size"] != vocab_size:
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
        self.folder = shard_folder(vocab_size, vocab_source, data_dir)
        self.meta = read_meta(self.folder, vocab_size)
        paths = sorted(glob.glob(f"{glob.escape(self.folder)}/*.bin"))
        self.paths = paths[1:] if split == "train" else paths[:1]
        if not self.paths:
            raise InputError(f"no shards for {split} in {self.folder}: run pretokenize ({MAKERS})")
        row_len = self.meta.get("row_len")
        self.masked = row_len is not None  # shards for fine-tuning
        if self.masked and row_len != max_seq_len:
            raise InputError(f"{self.folder} has rows of {row_len}: give --max_seq_len={row_len}")
        self.stride = max_seq_len + self.masked  # chunks of running text share a token, rows do not
        self.ids = [self._open(path, self.meta["dtype"]) for path in self.paths]
        self.masks = [self._open(path[:-4] + ".mask", "uint8") for path in self.paths if self.masked]
        self.ends = np.cumsum([(len(ids) - (not self.masked)) // self.stride for ids in self.ids])
        self._order = {}

    def _open(self, path, dtype):
        ids = np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
        if len(ids) <= self.max_seq_len:
            raise InputError(f"{path} is shorter than one sequence of {self.max_seq_len} + 1 tokens")
        return ids

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, index):
        """An int gives tensors of (T,), a sequence of B ints tensors of (B, T)."""
        ids = self._read(self.ids, index)  # (B, T + 1)
        if ids.max() >= self.vocab_size:
            raise InputError(f"{self.folder}: id {ids.max()} is outside the vocabulary of {self.vocab_size}")
        item = [ids[..., :-1], ids[..., 1:]]
        if self.masked:
            mask = self._read(self.masks, index)
            item[1] = np.where(mask[..., 1:] == LEARNED, item[1], -1)
            item.append(np.cumsum(mask == BEGINS, axis=-1)[..., :-1])
        return [torch.from_numpy(np.ascontiguousarray(numbers)) for numbers in item]

    def __getitems__(self, positions):
        """What DataLoader(dataset, batch_size=8), the tutorial's call, reads: a shuffled epoch."""
        return [self[int(self.order(0)[p])] for p in positions]

    def __iter__(self):
        """(x, y) without end, shuffled."""
        for (i,) in self.batches(1):
            yield self[i]

    def _read(self, files, index):
        """max_seq_len + 1 numbers of each chunk, out of the files of ids or of masks."""
        chunks = []
        for i in np.atleast_1d(index):
            if not 0 <= i < len(self):
                raise IndexError(i)
            shard = int(np.searchsorted(self.ends, i, side="right"))
            start = int(i - (self.ends[shard - 1] if shard else 0)) * self.stride
            chunks.append(files[shard][start : start + self.max_seq_len + 1])
        chunks = np.stack(chunks).astype(np.int64)
        return chunks[0] if np.ndim(index) == 0 else chunks

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
            positions = range(batch * batch_size, (batch + 1) * batch_size)  # in the run, all epochs in a row
            yield [int(self.order(p // len(self))[p % len(self)]) for p in positions]
            batch += world_size


class Task:
    @staticmethod
    def iter_batches(batch_size, device, num_workers=0, start=0, **dataset_kwargs):
        """
        Endless (x, y) or (x, y, documents), each (batch_size, max_seq_len) on `device`. start=N resumes after
        N batches of this rank; the other arguments are PretokDataset's. The number of workers changes nothing
        but the speed.
        """
        dataset = PretokDataset(**dataset_kwargs)
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        cuda = str(device).startswith("cuda")
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,  # the sampler yields whole batches
            sampler=dataset.batches(batch_size, start, rank, world_size),
            num_workers=num_workers,
            pin_memory=cuda,
        )
        for batch in loader:
            yield [tensor.to(device, non_blocking=cuda) for tensor in batch]


if __name__ == "__main__":
    given = override(globals(), COMMANDS)
    globals()[given["command"]]()
