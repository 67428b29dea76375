"""
The Chinese data: from two corpora to shards of token ids, one verb a stage.

    python prepare_data.py download        seq-monkey and BELLE, from hubs -> data/
    python prepare_data.py pretrain        seq-monkey in chunks           -> data/seq_monkey_datawhale.jsonl
    python prepare_data.py sft             BELLE as lists of messages     -> data/BelleGroup_sft.jsonl
    python train_tokenizer.py              learned from the chunks        -> tokenizer_k/
    python prepare_data.py pretokenize     the chunks' ids                -> data/seq_monkey/
    python prepare_data.py pretokenize_sft the messages' ids and masks    -> data/belle_sft/

--input and --output name other files. seq-monkey is read packed, as it comes, or unpacked; one line of it
is in memory at a time, and what is above 16 MB of it is passed over. Downloads and shards that are done,
even by a run that was killed, are not done again; `pretrain` and `sft` write one file, and begin anew. Then
follows train.py --vocab_source=data/seq_monkey, and after it data/belle_sft with --init_from=output/ckpt.pt.
seq-monkey: Mobvoi's corpus of web pages, encyclopedias, books. BELLE: Ji et al. 2023, arXiv:2303.14742.
"""

import bz2
import collections
import functools
import hashlib
import itertools
import json
import os
import sys
import tarfile

import numpy as np
from tqdm import tqdm

from configurator import atomic_write, first_line, need, override
from documents import LONGEST, cut, fetch, field, json_lines, read_line
from shards import build_shards, encode_shard, read_meta
from tokenizer import Tokenizer

input = ""  # what to read; where not given, what stands above
output = ""  # what to write; where not given, what stands above
tokenizer = "tokenizer_k"  # pretokenize, pretokenize_sft: the tokenizer's folder
max_seq_len = 512  # pretokenize_sft: tokens of a row, which is a training sequence
show = 0  # pretokenize_sft: first print so many conversations, token by token, with what is learned
workers = os.cpu_count() or 1  # pretokenize, pretokenize_sft: processes

VERBS = ("download", "pretrain", "sft", "pretokenize", "pretokenize_sft")
SEQ_MONKEY, BELLE = "mobvoi_seq_monkey_general_open_corpus.jsonl.tar.bz2", "train_3.5M_CN.json"
PLACES = {  # verb: (input, output)
    "pretrain": (f"data/{SEQ_MONKEY}", "data/seq_monkey_datawhale.jsonl"),
    "sft": (f"data/{BELLE}", "data/BelleGroup_sft.jsonl"),
    "pretokenize": ("data/seq_monkey_datawhale.jsonl", "data/seq_monkey"),
    "pretokenize_sft": ("data/BelleGroup_sft.jsonl", "data/belle_sft"),
}
CHUNK = 512  # characters
SYSTEM = "你是一个AI助手"  # the system message of every conversation
SPEAKERS = {"human": "user", "assistant": "assistant"}  # BELLE's names, and the chat template's
NAMED = 20  # bad lines of a kind that are named; those after them are only counted
REASONS = {json.JSONDecodeError: "no JSON", UnicodeDecodeError: "no UTF-8", RecursionError: "too deep",
           UnicodeEncodeError: "half a surrogate pair"}  # fmt: skip
OPEN_ROWS = 64  # rows of a shard that wait for a conversation to fill them up
dump = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes one for each call


def places(verb):
    if not os.path.isfile(source := input or PLACES[verb][0]):
        raise ValueError(f"no file {source}: give --input, or see --help for what makes it")
    return source, output or PLACES[verb][1]


def download():
    """fetch seq-monkey and BELLE"""
    folder, failed = output or "data", []
    for get in (fetch_seq_monkey, fetch_belle):
        try:  # both go on where they were cut off, and check what they got
            print(f"downloaded {get(folder)}")
        except Exception as error:  # of several libraries below them
            failed.append(first_line(error))
    if failed:
        raise ValueError("not downloaded: " + "; ".join(failed))


def fetch_seq_monkey(folder):
    need("modelscope", "seq-monkey, which lies on ModelScope,")
    from modelscope.hub.file_download import dataset_file_download

    return dataset_file_download("ddzhu123/seq-monkey", SEQ_MONKEY, local_dir=folder)


def fetch_belle(folder):
    return fetch("BelleGroup/train_3.5M_CN", BELLE, folder)


def pretrain():
    """cut seq-monkey's texts into chunks of 512 characters"""
    # a text by itself is dumped in 2.1 us, in a dict in 3.9, of 18 for a line
    rewrite("pretrain", "text", str, lambda text: ['{"text": ' + dump(c) + "}" for c in split_text(text)])


def split_text(text, chunk_size=CHUNK):
    """split_text("abcde", 2) -> ["ab", "cd", "e"]"""
    return [text[i : i + chunk_size] for i in range(0, len(text), chunk_size)]


def sft():
    """turn BELLE's conversations into lists of messages"""
    rewrite("sft", "conversations", list, lambda turns: [dump(convert_message(turns))])


def convert_message(data):
    """
    [{"from": "human", "value": "1+1=?"}, ...] -> [{"role": "system", ...}, {"role": "user", "content":
    "1+1=?"}, ...]; ValueError says why something is no conversation to learn from.
    """
    messages = [{"role": "system", "content": SYSTEM}]
    for turn in data:
        role = SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None:
            raise ValueError("an unknown speaker")
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            raise ValueError("an empty value")
        if role == messages[-1]["role"]:
            raise ValueError("two turns of one speaker running")
        if role == "assistant" and len(messages) == 1:
            raise ValueError("an answer without a question")
        messages.append({"role": role, "content": turn["value"]})
    if len(messages) < 3:
        raise ValueError("no answer")
    return messages


def rewrite(verb, key, kind, convert):
    """Write the lines that convert makes of each line's value under `key`; count what is bad, by reason."""
    source, target = places(verb)
    number, written, bad = 0, 0, collections.Counter()
    with atomic_write(target, "wb") as f:
        for number, line in lines_of(source):
            try:
                if line is None:
                    raise ValueError(f"longer than {LONGEST:,} bytes")
                item = json.loads(line)
                if not isinstance(item, dict) or not isinstance(item.get(key), kind):
                    raise ValueError(f"no {key}")
                new = convert(item[key])
                f.write("".join([text + "\n" for text in new]).encode("utf-8"))
                written += len(new)
            except (ValueError, RecursionError) as error:
                reason = REASONS.get(type(error), str(error))
                bad[reason] += 1
                if bad[reason] <= NAMED:
                    tqdm.write(f"{source}, line {number}: {reason}", file=sys.stderr)
        if not written:
            raise ValueError(f"{source}: {number} lines, and no {key} in them")
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in bad.most_common())
    print(f"{target}: {written:,} lines, from {number:,}; left out: {reasons or 'none'}")


def lines_of(path):
    """
    (number, bytes) of each line that is not blank, under a bar of the bytes on the disk; None for the bytes
    of a line above LONGEST.
    """
    number, size = 0, os.path.getsize(path)
    with open(path, "rb") as raw, tqdm(total=size, unit="B", unit_scale=True, desc="read") as bar:
        try:
            for f in unpacked(raw, path):
                while (found := read_line(f))[0]:
                    number, (line, size) = number + 1, found
                    if number % 1000 == 0:
                        bar.update(raw.tell() - bar.n)
                    if not line.isspace():
                        yield number, line if size == len(line) else None
        except (tarfile.TarError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
                raise
            raise ValueError(f"{path} is not a sound archive: {error}") from None
        bar.update(raw.tell() - bar.n)


def unpacked(raw, path):
    """The JSON files in an open .tar.bz2 as streams, one after another; of any other file, itself."""
    f = bz2.open(raw) if path.endswith(".bz2") else raw
    if ".tar" not in os.path.basename(path):
        yield f
        return
    with tarfile.open(fileobj=f, mode="r|") as tar:
        for member in tar:
            name = os.path.basename(member.name)  # "._" begin the side files of a Mac's tar
            if member.isfile() and name.endswith((".jsonl", ".json")) and not name.startswith("._"):
                yield tar.extractfile(member)


def pretokenize():
    """turn the chunks into shards of token ids"""
    make_shards("pretokenize", functools.partial(encode_shard, eos=True), Tokenizer(tokenizer))


def make_shards(verb, work, tok, **extra):
    source, folder = places(verb)
    jobs = [{"name": f"data{i:02}", "source": (source, *part), "text_key": "text"}
            for i, part in enumerate(parts_of(source))]  # fmt: skip
    build_shards(folder, jobs, work, tok, tokenizer, os.path.basename(source), workers, **extra)
    return list(read_meta(folder)["shards"].values())


def parts_of(path):
    """[(start, end)], in bytes, of a .jsonl's shards: of 64 MB; 10 or more; none tiny."""
    if not path.endswith(".jsonl"):
        raise ValueError(f"{path} is not a .jsonl: run python prepare_data.py pretrain or sft")
    size = os.path.getsize(path)
    parts = cut(path, max(2, min(max(10, size >> 26), size // 20_000)))
    bounds = sorted({0, size, *(document_begins(path, start) for start, _ in parts[1:])})
    if len(bounds) < 3:
        raise ValueError(f"{path} is too short for a part to train on and a part to validate on")
    return list(zip(bounds, bounds[1:]))


def document_begins(path, at):
    """The first line from `at` on that begins a document: a chunk behind a full one may go on with it."""
    with open(path, "rb") as f:
        f.seek(max(0, at - (1 << 16)))
        before = f.read(at - f.tell()).splitlines(keepends=True)[-1]
    full = False
    for start, item in json_lines(path, at - len(before)):
        if start >= at and not full:
            return start
        full = len(field(item, "text") or "") == CHUNK
    return os.path.getsize(path)


def pretokenize_sft():
    """turn the conversations into rows of token ids, and masks of what is learned"""
    tok = Tokenizer(tokenizer)
    tok.encode_chat([{"role": "assistant", "content": "!"}])  # ValueError where it has no chat template
    if show:
        show_chats(places("pretokenize_sft")[0], tok)
    template = hashlib.sha256(tok.template.encode()).hexdigest()[:16]
    work = functools.partial(encode_chats, row_len=max_seq_len)
    records = make_shards("pretokenize_sft", work, tok, row_len=max_seq_len, chat_template=template)
    rows, used, too_long = (sum(r[key] for r in records) for key in ("rows", "tokens_used", "cut"))
    print(f"{rows:,} rows, {used / rows / (max_seq_len + 1):.0%} full; "
          f"{too_long:,} conversations were longer than a row, and were cut")  # fmt: skip


def encode_chats(job, tok, dtype, folder, row_len):
    """Write one shard of conversations: rows of row_len + 1 ids, and beside it the mask, a byte an id."""
    size, ids, mask, rows = row_len + 1, bytearray(), bytearray(), 0
    count = dict.fromkeys(("documents", "skipped", "cut", "bytes", "tokens", "tokens_used"), 0)
    for row_ids, row_mask in pack(chats_of(job["source"], tok, size, count), size):
        padding = size - len(row_ids)
        ids += np.array(row_ids + [max(tok.pad_id, 0)] * padding, dtype).tobytes()
        mask += bytes(row_mask + [0] * padding)
        rows += 1
    if not rows:
        raise ValueError(f"no conversation in {job['source'][0]} from byte {job['source'][1]} on")
    for array, ending in ((mask, "mask"), (ids, "bin")):  # the .bin last: it is the one that is looked for
        with atomic_write(os.path.join(folder, f"{job['name']}.{ending}"), "wb") as f:
            f.write(array)
    return count | {"rows": rows, "tokens_stored": rows * size}


def chats_of(source, tok, size, count):
    """(ids, mask) of each conversation, of its first `size` ids, if there is something to learn in them."""
    for at, messages in json_lines(*source):
        try:
            ids, mask = tok.encode_chat(messages)
        except ValueError as error:
            ids, mask = [], []
            print(f"\n{source[0]}: no chat in the line at byte {at}: {error}", file=sys.stderr)
        learned = [i for i, m in zip(ids[:size], mask) if m]
        if not learned:  # or a question that alone is longer than a row
            count["skipped"] += 1
            continue
        count["documents"] += 1
        count["cut"] += len(ids) > size
        count["bytes"] += len(tok.decode(learned).encode("utf-8"))
        count["tokens"] += len(learned)
        count["tokens_used"] += min(size, len(ids))
        yield ids[:size], mask[:size]


def pack(chats, size):
    """
    Lay (ids, mask) end to end into rows of at most `size`: each into the first of the OPEN_ROWS newest rows
    that has room. A row for each would be mostly padding.
    """
    rows = []
    for ids, mask in chats:
        row = next((row for row in rows if len(row[0]) + len(ids) <= size), None)
        if row is None:
            rows.append(row := ([], []))
            if len(rows) > OPEN_ROWS:
                yield rows.pop(0)
        row[0].extend(ids)
        row[1].extend(mask)
    yield from rows


def show_chats(path, tok):
    for at, messages in itertools.islice(json_lines(path), show):
        ids, mask = tok.encode_chat(messages)
        print(f"--- {path} at byte {at}: {sum(mask)} of {len(ids)} tokens are learned")
        for i, m in zip(ids, mask):
            text = tok.tk.decode([i], skip_special_tokens=False)  # \ufffd for a part of a character
            shown = tok.piece(i) if "\ufffd" in text else repr(text)
            print(f"{'learned' if m else '':>7} {i:>6}  {shown}")


if __name__ == "__main__":
    config = override(globals(), VERBS)
    globals()[config["verb"]]()
