"""
From documents to shards, for whoever has documents: tinystories.py (stories) and prepare_data.py (Chinese
text, chats).

Reads  what documents.py reads
Writes a folder of shards: dataNN.bin (+ dataNN.mask for fine-tuning) and meta.json

A shard is token ids back to back, little-endian, without a header: uint16, or uint32 above 65,536 ids.
llama2.c reads and writes the same. meta.json says what they were made from, so that work that is done is
known to be done, work cut off by a crash goes on where it was, and nobody trains on another vocabulary
than they think.
"""

import functools
import glob
import hashlib
import os
import sys
from array import array
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from tqdm import tqdm

from configurator import atomic_write, end_with_parent, remove_leftovers
from documents import read_json, texts_of, write_json
from tokenizer import Tokenizer

MAKERS = "tinystories.py for stories and text, prepare_data.py for Chinese"


@functools.lru_cache(maxsize=1)  # the words of one shard serve the next that its process makes
def fast_encoder(tok: Tokenizer, dtype):
    """
    A function from a text to its ids as bytes of `dtype`, the same ids as tok.encode(text).

    sentencepiece's BPE never merges across a space, where it drops doubled spaces and no piece has a
    space inside: so a text is its words' pieces, end to end, and nearly every word has been seen before.
    """
    by_words = tok.kind == "sentencepiece" and tok.encode("a b") == tok.encode(" a  b ")
    if not by_words or any("▁" in tok.piece(i)[1:] for i in range(tok.n_words)):
        return lambda text: np.array(tok.encode_batch([text])[0], dtype=dtype).tobytes()

    code = {"uint16": "H", "uint32": "I"}[dtype]

    class Words(dict):
        def __missing__(self, word):
            if len(self) > 1_000_000:  # about 150 MB
                self.clear()
            ids = self[word] = array(code, tok.encode(word)).tobytes()  # for few ids faster than numpy
            return ids

    known = Words()

    def encode(text):
        if "▁" in text:  # the mark that sentencepiece puts for a space, in the text itself: rare
            return np.array(tok.encode(text), dtype=dtype).tobytes()
        return b"".join(map(known.__getitem__, text.split(" ")))

    return encode


def build_shards(folder, jobs, work, tok, tokenizer_path, corpus, workers, **extra):
    """
    Write the shards of `jobs` into `folder` with a pool of processes, and a meta.json that says what they
    are.

    job   {"name": "data07", "source": (path, start, end), ...}; work(job, tok, dtype, folder) writes the
          files of that name and returns {"tokens", "bytes", ...}
    A shard that is there, and was made from the same bytes by the same tokenizer, is not made again.
    """
    os.makedirs(folder, exist_ok=True)
    remove_leftovers(folder)
    final, partial = os.path.join(folder, "meta.json"), os.path.join(folder, "meta.partial.json")
    head = {
        "corpus": corpus,
        "tokenizer": relative(tokenizer_path, folder),
        "tokenizer_fingerprint": tok.fingerprint(),
        "vocab_size": tok.n_words,
        "dtype": "uint16" if tok.n_words <= 65536 else "uint32",
        **extra,
    }
    before = next((read_json(p) for p in (partial, final) if os.path.exists(p)), {})
    done = before.get("shards", {}) if {k: before.get(k) for k in head} == head else {}
    records, up_to_date = {}, True
    for name, record, made in _all_shards(folder, jobs, work, tok, head["dtype"], done, workers):
        if made and os.path.exists(final):  # from here on the folder is a mixture, and must not look finished
            tqdm.write(f"{folder} is stale, made from other text or by another tokenizer: again")
            os.remove(final)
        records[name] = record
        up_to_date &= not made
        write_json(partial, {**head, "shards": records})
    for path in glob.glob(os.path.join(glob.escape(folder), "data*.*")):  # of an earlier, larger corpus
        if path.endswith((".bin", ".mask")) and os.path.splitext(os.path.basename(path))[0] not in records:
            os.remove(path)
    records = dict(sorted(records.items()))
    splits = {"val": list(records.values())[:1], "train": list(records.values())[1:]}
    keys = ("documents", "bytes", "tokens")
    splits = {split: {k: sum(r[k] for r in rs) for k in keys} for split, rs in splits.items()}
    if not os.path.exists(final):
        everything = "".join(r["fingerprint"] for r in records.values())
        head["corpus_fingerprint"] = hashlib.sha256(everything.encode()).hexdigest()[:16]
        write_json(final, {**head, "splits": splits, "shards": records})
    os.remove(partial)
    if up_to_date:
        print(f"{folder} is up to date")
    train, val, left_out = splits["train"], splits["val"], sum(r["skipped"] for r in records.values())
    print(
        f"{folder}: {train['tokens']:,} tokens to train on, {val['tokens']:,} to validate, "
        f"{train['bytes'] / max(1, train['tokens']):.2f} bytes a token"
        + (f"; {left_out} documents left out" if left_out else "")
    )


def _all_shards(folder, jobs, work, tok, dtype, done, workers):
    """Run the jobs; yields (name, record, whether it was made) as they end. ValueError names the shard."""
    processes = max(1, min(workers, len(jobs)))
    with ProcessPoolExecutor(processes, initializer=_begin, initargs=(tok.state(),)) as pool:
        futures = {}
        for job in jobs:
            old = done.get(job["name"])
            futures[pool.submit(_one_shard, job, work, dtype, folder, old)] = job["name"]
        try:
            for future in tqdm(as_completed(futures), total=len(jobs), desc="pretokenize", unit="shard"):
                try:
                    record, made = future.result()
                except (OSError, MemoryError):
                    raise
                except Exception as error:
                    raise ValueError(f"shard {futures[future]}: {error}") from None
                yield futures[future], record, made
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(tokenizer_state):
    """What each process of the pool does first."""
    global worker_tok
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as many threads in each of as many processes: slower
    worker_tok = Tokenizer(tokenizer_state)


def _one_shard(job, work, dtype, folder, old):
    """(record, whether it had to be made); runs in a process of the pool."""
    fingerprint = fingerprint_of(*job["source"])
    size = os.path.getsize(p) if os.path.exists(p := os.path.join(folder, job["name"] + ".bin")) else -1
    if old and old["fingerprint"] == fingerprint:
        if size == old["tokens_stored"] * np.dtype(dtype).itemsize:
            return old, False
    return work(job, worker_tok, dtype, folder) | {"fingerprint": fingerprint}, True


def fingerprint_of(path, start, end):
    """sha256 of a part of a file, and of which part it is."""
    digest = hashlib.sha256(f"{start}-{end}".encode())
    with open(path, "rb") as f:
        whole = path.endswith(".json")
        f.seek(0 if whole else start)
        left = None if whole or end is None else end - start
        while block := f.read(1 << 20 if left is None else min(1 << 20, left)):
            digest.update(block)
            left = None if left is None else left - len(block)
    return digest.hexdigest()[:16]


def encode_shard(job, tok, dtype, folder, bos=True, eos=False):
    """Write one shard of documents: BOS, a document's ids, (EOS,) the next."""
    encode = fast_encoder(tok, dtype)
    before = np.array([tok.bos_id] * (bos and tok.bos_id >= 0), dtype=dtype).tobytes()
    after = np.array([tok.eos_id] * (eos and tok.eos_id >= 0), dtype=dtype).tobytes()
    parts, count = [], {"documents": 0, "bytes": 0, "tokens": 0, "skipped": 0}
    for where, text in texts_of(*job["source"], job["text_key"]):
        if text is None:
            count["skipped"] += 1
            if count["skipped"] <= 3:
                print(f"\n{where} has no text under {job['text_key']!r}: left out", file=sys.stderr)
            continue
        count["documents"] += 1
        count["bytes"] += len(tok.normalize(text).encode("utf-8"))
        parts += (before, encode(text.strip()), after)
    if not count["documents"]:
        raise ValueError(f"no document in {job['source'][0]}")
    ids = b"".join(parts)
    count["tokens"] = count["tokens_stored"] = len(ids) // np.dtype(dtype).itemsize
    with atomic_write(os.path.join(folder, job["name"] + ".bin"), "wb") as f:
        f.write(ids)
    return count


def relative(path, folder):
    """`path` as seen from `folder`, so that the two may be moved together."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


def read_meta(folder, vocab_size=None):
    """
    The meta.json of a folder of shards; a folder without is llama2.c's. ValueError if its vocabulary is
    another.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"no folder of shards at {folder}: pretokenize first ({MAKERS})")
    if os.path.exists(os.path.join(folder, "meta.partial.json")):
        raise ValueError(f"{folder} is unfinished: pretokenize once more ({MAKERS})")
    path = os.path.join(folder, "meta.json")
    if not os.path.exists(path):
        if glob.glob(os.path.join(glob.escape(folder), "*.bin")):
            print(f"{folder} has no meta.json: taking its shards for llama2.c's, uint16", file=sys.stderr)
        return {"dtype": "uint16"}
    meta = read_json(path)
    if not (isinstance(meta, dict) and meta.get("dtype") in ("uint16", "uint32") and "vocab_size" in meta):
        raise ValueError(f"{path} does not say vocab_size and dtype (uint16 or uint32)")
    if vocab_size and meta["vocab_size"] != vocab_size:
        raise ValueError(f"{folder} holds ids of a vocabulary of {meta['vocab_size']}, not {vocab_size}")
    return meta
