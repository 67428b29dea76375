"""
The data: from stories in JSON to batches of token ids, one verb a stage.

    python tinystories.py download        TinyStories, 1.5 GB, from a hub     -> data/TinyStories_all_data/
    python tinystories.py download --small       or 22.5 MB of it             -> the same
    python tinystories.py synthesize      without a network: synthetic ones   -> the same
    python tinystories.py train_vocab     a sentencepiece BPE tokenizer       -> data/tok4096.model
    python tinystories.py pretokenize     the stories' ids, shard by shard    -> data/tok4096/

`pretokenize` runs whatever it misses, so it alone is enough. A text of your own:

    python tinystories.py pretokenize --input=my.txt --vocab_size=1024 --vocab_source=data/mine
    python train.py --vocab_source=data/mine

A shard is token ids back to back (uint16, little-endian; uint32 above 65,536 ids), each story begun by
BOS: llama2.c reads and writes the same. Shard 0 is for validation, everywhere and always: no tokenizer
and no model ever learns from it.

TinyStories: Eldan & Li 2023, arXiv:2305.07759. `Task.iter_batches` is what train.py reads.
"""

import contextlib
import functools
import glob
import io
import os
import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import atomic_write, end_with_parent, override
from documents import END, cut, fetch, read_json, texts_of, unpack, write_json
from shards import MAKERS, build_shards, encode_shard, read_meta
from tokenizer import Tokenizer

data_dir = "data"  # where all of it lies
vocab_size = 4096  # of the tokenizer; 0: Llama 2's own, 32,000, given by --tokenizer
tokenizer = ""  # a tokenizer to take instead of data/tok<vocab_size>.model
vocab_source = ""  # pretokenize: the folder to write shards to, instead of data/tok<vocab_size>
input = ""  # pretokenize: a text of your own, .txt (documents between <|endoftext|> lines), .jsonl or .json
text_key = "story"  # the field of .json and .jsonl that holds the text
small = False  # download: only the 22.5 MB
num_shards = 10  # train_vocab: how many shards to learn from, beginning with data01
megabytes = 20.0  # synthesize: how much
seed = 42  # synthesize: another seed tells other stories
workers = os.cpu_count() or 1  # processes

VERBS = ("download", "synthesize", "train_vocab", "pretokenize")
STORIES = "TinyStories_all_data"
SHARDS = 50  # as many as the original has


# --------------------------------------------------------------------------------------------------------
# stories


def download():
    """fetch TinyStories (--small=True: 22.5 MB of it)"""
    name = "TinyStoriesV2-GPT4-valid.txt" if small else f"{STORIES}.tar.gz"
    path = fetch("roneneldan/TinyStories", name, data_dir)
    with new_stories("TinyStories, GPT-4 validation file" if small else "TinyStories") as folder:
        if small:
            stories = [text for _, text in texts_of(path)]
            if len(stories) < SHARDS:
                os.remove(path)
                raise ValueError(f"{path} holds no stories and was deleted")
            write_stories(folder, [{"story": s, "source": "GPT-4"} for s in stories])
        else:
            unpack(path, folder)


def synthesize():
    """write synthetic stories, for a machine with no network"""
    from extras.synthetic_stories import write_shard

    name = f"synthetic stories, {megabytes:g} MB, seed {seed}"
    if corpus_name().startswith("TinyStories"):
        raise ValueError(f"{data_dir} holds {corpus_name()}: give the synthetic ones another --data_dir")
    if corpus_name() == name:
        return print(f"{data_dir}/{STORIES} holds them already: {name}")
    with new_stories(name) as folder, ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        size = int(megabytes * 1e6 / SHARDS)
        write = functools.partial(write_shard, seed, num_bytes=size)
        shards = pool.map(write, range(SHARDS))
        for i, stories in enumerate(tqdm(shards, total=SHARDS, desc="synthesize", unit="shard")):
            write_json(os.path.join(folder, f"data{i:02}.json"), stories)


def write_stories(folder, stories):
    for i in range(SHARDS):
        write_json(os.path.join(folder, f"data{i:02}.json"), stories[i::SHARDS])


@contextlib.contextmanager
def new_stories(name):
    """A folder to fill; it becomes data/TinyStories_all_data, in one step, when all of it is there."""
    folder, new = os.path.join(data_dir, STORIES), os.path.join(data_dir, STORIES + ".new")
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    yield new
    count = len(glob.glob(os.path.join(glob.escape(new), "data*.json")))
    if not count:
        raise ValueError(f"{name}: no stories in it")
    with contextlib.suppress(FileNotFoundError):  # its name goes before it: no moment has a wrong one
        os.remove(os.path.join(data_dir, "corpus.json"))
    shutil.rmtree(folder + ".old", ignore_errors=True)
    if os.path.exists(folder):  # not rmtree: killed in it, half a corpus would look like a whole one
        os.replace(folder, folder + ".old")
    os.replace(new, folder)
    write_json(os.path.join(data_dir, "corpus.json"), {"corpus": name})
    shutil.rmtree(folder + ".old", ignore_errors=True)
    print(f"{name}: {count} shards in {folder}")


def corpus_name():
    """What data/TinyStories_all_data holds, '' where there is nothing."""
    path = os.path.join(data_dir, "corpus.json")
    if not story_files():
        return ""
    return read_json(path)["corpus"] if os.path.exists(path) else "stories"


def story_files():
    return sorted(glob.glob(os.path.join(glob.escape(os.path.join(data_dir, STORIES)), "data*.json")))


def need_stories():
    if story_files():
        return
    print(f"no stories in {data_dir}/{STORIES}: downloading them")
    try:
        download()
    except ValueError as error:
        print(f"\n*** {error}\n*** Taking SYNTHETIC stories; for real ones: tinystories.py download\n")
        synthesize()


# --------------------------------------------------------------------------------------------------------
# tokenizer


def train_vocab():
    """learn a BPE vocabulary of --vocab_size pieces from the stories"""
    import sentencepiece

    if vocab_size <= 0:
        raise ValueError("Llama 2's vocabulary is given by --tokenizer=PATH, not trained")
    if input:
        files, name = [(input, *part) for part in cut(input, own_parts())[1:]], input
    else:
        need_stories()
        files, name = [(path, 0, None) for path in story_files()[1 : num_shards + 1]], corpus_name()
    print(f"training a vocabulary of {vocab_size} on {len(files)} shards of {name}")
    texts = (text for part in files for _, text in texts_of(*part, text_key) if text)
    lines = (line for text in texts for line in text.splitlines() if line)
    model = io.BytesIO()
    try:  # the tutorial's settings: bytes for what has no piece, digits one by one, nothing normalised away
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, model_type="bpe", vocab_size=vocab_size,
            self_test_sample_size=0, character_coverage=1.0, num_threads=workers, split_digits=True,
            allow_whitespace_only_pieces=True, byte_fallback=True, unk_surface=r" \342\201\207 ",
            normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"sentencepiece: {str(error).rsplit('] ', 1)[-1]}") from None
    path = own_tokenizer()
    with atomic_write(path, "wb") as f:
        f.write(model.getvalue())
    write_json(path.replace(".model", ".json"), {"corpus": name})
    print(f"wrote {path}")


def own_tokenizer():
    """Where train_vocab writes and pretokenize looks: data/tok4096.model, or beside a text of one's own."""
    if tokenizer:
        return tokenizer
    if input:
        return f"{vocab_source.rstrip('/')}.model"
    return os.path.join(data_dir, f"tok{vocab_size}.model")


def own_parts():
    return max(2, min(SHARDS, os.path.getsize(input) // 20_000))


def need_tokenizer(name):
    """The tokenizer; trained where there is none, or where ours learned from other stories than these."""
    path = own_tokenizer()
    made_from = path.replace(".model", ".json")
    if not tokenizer:
        stale = os.path.exists(made_from) and read_json(made_from)["corpus"] != name
        if stale:
            print(f"{path} was trained on {read_json(made_from)['corpus']}: training it again on {name}")
        if stale or not os.path.exists(path):
            train_vocab()
    return Tokenizer(path), path


# --------------------------------------------------------------------------------------------------------
# shards


def pretokenize():
    """turn the stories into shards of token ids"""
    if input:
        if not os.path.exists(input):
            raise ValueError(f"no file {input}")
        if not vocab_source:
            raise ValueError("--input needs --vocab_source=FOLDER, where the shards shall go")
        name, parts = input, [(input, a, b) for a, b in cut(input, own_parts())]
        if len(parts) < 2:
            raise ValueError(f"{input} is one line: put {END} between its documents, some of which validate")
    else:
        need_stories()
        name, parts = corpus_name(), [(path, 0, None) for path in story_files()]
    tok, path = need_tokenizer(name)
    if vocab_size and tok.n_words != vocab_size:
        raise ValueError(f"--vocab_size={vocab_size}, but {path} has {tok.n_words} pieces")
    folder = vocab_source or shard_folder(vocab_size, "custom" if vocab_size else "llama2", data_dir)
    jobs = [{"name": f"data{i:02}", "source": part, "text_key": text_key} for i, part in enumerate(parts)]
    build_shards(folder, jobs, encode_shard, tok, path, name, workers)


def shard_folder(vocab_size, vocab_source, data_dir="data"):
    """
    'custom' -> data/tok4096; 'llama2' -> beside the stories, as in llama2.c; any other vocab_source is a
    folder itself.
    """
    known = {"custom": f"tok{vocab_size}", "llama2": STORIES}
    return os.path.join(data_dir, known[vocab_source]) if vocab_source in known else vocab_source


# --------------------------------------------------------------------------------------------------------
# batches


class PretokDataset(torch.utils.data.Dataset):
    """
    The chunks of a split, read from memory-mapped shards: item i is (x, y), int64 of (max_seq_len,),
    where y is x one token later; in shards for fine-tuning, y is -1 where there is nothing to learn.
    `len` is one epoch.

    split         'train': all shards but the first; 'val' or 'test': the first
    vocab_source  'custom': data/tok<vocab_size>; 'llama2': beside the stories; or a folder of shards
    ValueError where the shards are not what was asked for, or hold ids outside the vocabulary.
    """

    def __init__(self, split, max_seq_len, vocab_size, vocab_source, data_dir="data", seed=1337):
        self.max_seq_len, self.vocab_size, self.seed = max_seq_len, vocab_size, seed
        self.folder = shard_folder(vocab_size, vocab_source, data_dir)
        self.meta = read_meta(self.folder, vocab_size)
        paths = sorted(glob.glob(os.path.join(glob.escape(self.folder), "*.bin")))
        self.paths = paths[1:] if split == "train" else paths[:1]
        if not self.paths:
            raise ValueError(f"no shards for {split} in {self.folder}: pretokenize first ({MAKERS})")
        row = self.meta.get("row_len")
        self.masked = row is not None  # shards for fine-tuning
        if self.masked and row != max_seq_len:
            raise ValueError(f"{self.folder} has rows of {row}: give --max_seq_len={row}")
        self.stride = max_seq_len + self.masked  # chunks of running text share a token
        self.ids = [self._open(path, self.meta["dtype"]) for path in self.paths]
        self.masks = [self._open(path[:-4] + ".mask", "uint8") for path in self.paths if self.masked]
        for path, ids, mask in zip(self.paths, self.ids, self.masks or ()):
            if len(ids) != len(mask):
                raise ValueError(f"{path} has {len(ids)} ids, and {len(mask)} bytes of mask beside it")
        self.ends = np.cumsum([(len(m) - (not self.masked)) // self.stride for m in self.ids])
        self._order = {}

    def _open(self, path, dtype):
        size = os.path.getsize(path)
        if size % np.dtype(dtype).itemsize:
            raise ValueError(f"{path}: {size} bytes are no whole number of {dtype} ids")
        if size // np.dtype(dtype).itemsize <= self.max_seq_len:
            raise ValueError(f"{path} is shorter than one sequence of {self.max_seq_len} + 1 tokens")
        return np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, index):
        """An int gives (T,), (T,); a sequence of B ints gives (B, T), (B, T)."""
        chunks = np.stack([self._chunk(i) for i in np.atleast_1d(index)])  # (B, 2, T + 1)
        x, y = chunks[..., 0, :-1], chunks[..., 1, 1:]
        if np.ndim(index) == 0:
            x, y = x[0], y[0]
        return torch.from_numpy(x.copy()), torch.from_numpy(y.copy())

    def _chunk(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = int(np.searchsorted(self.ends, i, side="right"))
        start = int(i - (self.ends[shard - 1] if shard else 0)) * self.stride
        x = self.ids[shard][start : start + self.max_seq_len + 1].astype(np.int64)
        if x.max() >= self.vocab_size:
            where = f"{self.paths[shard]}: id {x.max()} at {start + x.argmax()}"
            raise ValueError(f"{where} is outside the vocabulary of {self.vocab_size}")
        y = np.where(self.masks[shard][start : start + len(x)], x, -1) if self.masked else x
        return np.stack((x, y))

    def order(self, epoch):
        """The order in which an epoch reads the chunks: a permutation, a function of (seed, epoch) alone."""
        if epoch not in self._order:
            self._order = {epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self))}
        return self._order[epoch]

    def batches(self, batch_size, start=0, rank=0, world_size=1):
        """
        Endless lists of batch_size chunk numbers: those of batches start * world_size + rank, ... +
        world_size, ... of the one global order. Every rank reads a part of its own, each chunk comes once
        an epoch, and `start` is where to go on.
        """
        batch = start * world_size + rank
        while True:
            positions = range(batch * batch_size, (batch + 1) * batch_size)  # in the run, all epochs in a row
            yield [int(self.order(p // len(self))[p % len(self)]) for p in positions]
            batch += world_size

    def __iter__(self):
        """The chunks in the order of the run, epoch after epoch, without end."""
        return (self[i] for batch in self.batches(1) for i in batch)


class Task:
    @staticmethod
    def iter_batches(batch_size, device, num_workers=0, start=0, **dataset_kwargs):
        """
        Endless (x, y), each (batch_size, max_seq_len) on `device`. start=N goes on where N batches of
        this rank ended; the other arguments are PretokDataset's. The number of workers changes nothing
        but the speed.
        """
        dataset = PretokDataset(**dataset_kwargs)
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        cuda = str(device).startswith("cuda")
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, sampler=dataset.batches(batch_size, start, rank, world_size),
            num_workers=num_workers, pin_memory=cuda,
        )  # fmt: skip
        try:
            for x, y in loader:
                yield x.to(device, non_blocking=cuda), y.to(device, non_blocking=cuda)
        except ValueError as error:  # from a worker process it comes with its traceback in the text
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None


if __name__ == "__main__":
    config = override(globals(), VERBS)
    globals()[config["verb"]]()
