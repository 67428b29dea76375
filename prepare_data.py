"""
Prepares the Chinese data: from two corpora to shards of token ids, one command a stage.

    python prepare_data.py download         BELLE and seq-monkey, from two hubs -> data/
    python prepare_data.py synthesize       or, without a network, sums spelled out in Chinese -> data/
    python prepare_data.py pretrain         seq-monkey in chunks            -> data/seq_monkey_datawhale.jsonl
    python prepare_data.py sft              BELLE as lists of messages      -> data/BelleGroup_sft.jsonl
    python train_tokenizer.py               learned from the chunks         -> tokenizer_k/
    python prepare_data.py pretokenize      the ids of the chunks           -> data/seq_monkey/
    python prepare_data.py pretokenize_sft  ids and masks of the messages   -> data/belle_sft/

--input_path and --output_path name other files; --lines=50000 takes their beginning, and loads no more. Then:

    python train.py --vocab_source=data/seq_monkey
    python train.py --vocab_source=data/belle_sft --init_from=output/ckpt.pt --out_dir=output_sft

SFT (supervised fine-tuning) shows the model questions and answers; it learns the answers only. sft reads the
shapes of BELLE, ShareGPT, OpenAI, Alpaca and more (see TURNS and PAIRS), and says which it has found.
seq-monkey (Mobvoi's corpus of web pages, encyclopedias and books) is read packed or unpacked, one line at a
time. Lines that cannot be used are counted, named and left out. BELLE: Ji et al. 2023, arXiv:2303.14742.
"""

import bz2
import collections
import functools
import itertools
import json
import mmap
import os
import random
import sys
import tarfile

import numpy as np
from tqdm import tqdm

from configurator import InputError, atomic_write, cpu_count, override
from reader import JSON_ENDINGS, get_text, parse, read_values
from tinystories import CHAT_START, encode_documents, write_shards
from tokenizer import Tokenizer

data_dir = "data"  # the folder for all of it
input_path = ""  # what to read; if empty, the file named above
encoding = "utf-8"  # pretrain, sft: of what is read: utf-8, gb18030, utf-16, ...
text_key = "text"  # pretrain: the field that holds the text
output_path = ""  # what to write; if empty, the file or folder named above
lines = 0  # at least 0: download, pretrain, sft: take this many lines and stop; 0: all
hub = "huggingface"  # huggingface | modelscope: download: which to ask first, before the other
tokenizer = "tokenizer_k"  # pretokenize, pretokenize_sft: the folder of the tokenizer
max_seq_len = 512  # at least 1: pretokenize_sft: tokens of a row; a row is one training sequence
show = 0  # at least 0: pretokenize_sft: first print so many chats, token by token, with what is learned
workers = cpu_count()  # at least 1: pretokenize, pretokenize_sft: processes
num_texts = 6000  # at least 1: synthesize: how many, of some 300 tokens each
num_chats = 20000  # at least 1: synthesize: how many, of some 90 tokens each
seed = 42  # at least 0, below 4e9: synthesize: another seed writes other texts

COMMANDS = ("download", "synthesize", "pretrain", "sft", "pretokenize", "pretokenize_sft")
SEQ_MONKEY = "mobvoi_seq_monkey_general_open_corpus.jsonl"  # or packed, .tar.bz2
BELLE = "train_3.5M_CN.json"
SYNTHETIC = ("synthetic_sums.jsonl", "synthetic_sums_chats.json")
PATHS = {  # command: (what it reads, the first of these that is in data_dir; what it writes)
    "pretrain": ((f"{SEQ_MONKEY}.tar.bz2", SEQ_MONKEY, SYNTHETIC[0]), "seq_monkey_datawhale.jsonl"),
    "sft": ((BELLE, SYNTHETIC[1]), "BelleGroup_sft.jsonl"),
    "pretokenize": (("seq_monkey_datawhale.jsonl",), "seq_monkey"),
    "pretokenize_sft": (("BelleGroup_sft.jsonl",), "belle_sft"),
}
CHUNK = 512  # characters
SYSTEM = "你是一个AI助手"  # the system message of a conversation that has none
OPEN_ROWS = 64  # rows that wait for a conversation that fills them up
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|im_start|>system\n{{ message['content'] }}<|im_end|>\n"
    "{% elif message['role'] == 'user' %}<|im_start|>user\n{{ message['content'] }}<|im_end|>\n"
    "{% elif message['role'] == 'assistant' %}<|im_start|>assistant\n{{ message['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def io_paths(command):
    """The paths that a command reads and writes."""
    names, target = PATHS[command]
    sources = [input_path] if input_path else [f"{data_dir}/{name}" for name in names]
    source = next(filter(os.path.isfile, sources), None)
    if source is None:
        raise InputError(f"no file {sources[0]}: give --input_path, or see --help for what makes it")
    return source, output_path or f"{data_dir}/{target}"


def download():
    """download seq-monkey and BELLE; with --lines so many lines of each, without the rest"""
    from extras.hubs import download_file, download_lines

    for name, unpack in ((f"{SEQ_MONKEY}.tar.bz2", read_archive), (BELLE, iter)):
        part = download_lines(name, data_dir, hub, lines, unpack) if lines else ""
        print(f"downloaded {part or download_file(name, data_dir, hub)}")


def synthesize():
    """write sums spelled out in Chinese, for a machine with no network"""
    from extras.synthetic_sums import chats, texts

    paths = [f"{data_dir}/{name}" for name in SYNTHETIC]
    if os.path.exists(paths[1]):  # the first alone is of a run that was killed
        raise InputError(f"{paths[1]} is there already: use it as it is, or give another --data_dir")
    rng = random.Random(seed)
    write_jsonl(paths[0], ({"text": text} for text in texts(rng, num_texts)))
    write_jsonl(paths[1], ({"conversations": turns} for turns in chats(rng, num_chats)))


def pretrain():
    """split the texts of seq-monkey into chunks of 512 characters"""
    counts = collections.Counter()

    def make_chunks(item):
        chunks = split_text(get_text(item, text_key))
        rows = [{"text": chunk} for chunk in chunks if chunk.strip()]
        counts["chunks of a text hold no text and are left out"] += len(chunks) - len(rows)
        return rows

    convert_jsonl("pretrain", make_chunks, counts)


def split_text(text, chunk_size=CHUNK):
    """split_text("abcde", 2) -> ["ab", "cd", "e"]"""
    return [text[i : i + chunk_size] for i in range(0, len(text), chunk_size)]


def sft():
    """convert conversations, of BELLE or in another of the shapes below, to lists of messages"""
    counts = collections.Counter()
    convert_jsonl("sft", lambda item: [convert_message(item, counts)], counts)


SPEAKERS = {  # the name of a speaker in the data sets of others: the role in a chat
    "system": "system", "developer": "system", "human": "user", "user": "user", "用户": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "助手": "assistant",
}  # fmt: skip
TURNS = (  # shapes with turns: (whose, the field that holds them, the fields of a turn: speaker, text)
    ("BELLE's and ShareGPT's", "conversations", "from", "value"),
    ("minimind's", "conversations", "role", "content"),
    ("OpenAI's", "messages", "role", "content"),
    ("the tutorial's", "a list", "role", "content"),  # no field, only the list: what sft itself writes
    ("the tutorial's", "a list", "from", "value"),
)
PAIRS = (  # shapes with one question: (whose, the fields of the question, those of the answer)
    ("Alpaca's", ("instruction", "input"), ("output",)),
    ("Dolly's", ("instruction", "context"), ("response",)),
    ("firefly's", ("input",), ("target",)),
    ("a prompt's", ("prompt",), ("response", "completion")),
    ("a question's", ("question", "context"), ("answer", "response")),
    ("ModelScope's", ("query",), ("response",)),
)


def find_turns(item):
    """(shape, [(speaker, text, its field), ...]) of a conversation, as its data set has them."""
    fields = {"a list": item} if isinstance(item, list) else item
    others = ("image", "images", "videos", "audios")
    if not isinstance(fields, dict) or any(map(fields.get, others)) or fields.get("label") is False:  # KTO's
        raise ValueError("no conversation, not of text alone, or labelled as a bad answer")
    found = [("system", fields.get("system") or fields.get("system_prompt"), "system")]
    for whose, name, speaker, text in TURNS:
        turns = fields.get(name)
        if isinstance(turns, list) and any(isinstance(turn, dict) and speaker in turn for turn in turns):
            for turn in (turn if isinstance(turn, dict) else {} for turn in turns):
                call = next(filter(turn.get, ("tool_calls", "function_call")), turn.get(speaker))
                if SPEAKERS.get(str(call)) == "assistant" and 0 in map(turn.get, ("weight", "loss", "train")):
                    raise ValueError("an answer that is marked as not to be learned")
                found.append((call, turn.get(text), text))
            return f"{whose} shape: {name} of {speaker}, {text}", found
    for whose, names, answers in PAIRS:
        answer = next(filter(fields.__contains__, answers), None)
        if names[0] in fields and answer:
            history = fields.get("history") or []  # earlier questions and answers
            if not (isinstance(history, list) and all(isinstance(p, list) and len(p) == 2 for p in history)):
                raise ValueError("a history that is no list of pairs")
            for pair in history:
                found += [("user", pair[0], "history"), ("assistant", pair[1], "history")]
            asked = [get_text(fields[n], f"{n} of user") for n in names if fields.get(n) not in (None, "")]
            found += [("user", "\n".join(asked), names[0]), ("assistant", fields[answer], answer)]
            return f"{whose} shape: {', '.join([*names, answer])}", found
    raise ValueError(f"no conversation of a known shape in the fields {', '.join(sorted(fields)):.80}")


def join_parts(text):
    """A text that may be given in parts, [{"type": "text", "text": "1+1=?"}, ...]."""
    if not isinstance(text, list):
        return text
    for part in (part if isinstance(part, dict) else {} for part in text):
        if not isinstance(part.get("text"), str):
            raise ValueError(f"a part that is no text: {part.get('type')!s:.40}")
    return "".join(part["text"] for part in text)


def convert_message(data, counts=None):
    """
    [{"from": "human", "value": "1+1=?"}, {"from": "assistant", "value": "2"}] ->
    [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "1+1=?"}, {"role": "assistant", ...}]

    Or from another shape. A system message of the data stands instead of SYSTEM; a question at the end, with
    no answer, is dropped. ValueError says why nothing can be learned. counts: a Counter of both for a report.
    """
    shape, turns = find_turns(data)
    messages = []
    for speaker, text, field in turns:
        role = SPEAKERS.get(str(speaker).lower())
        if role is None:
            raise ValueError(f"an unknown speaker: {speaker!s:.40}")
        text = join_parts(text)
        if role != "system" or str(text or "").strip():
            messages.append({"role": role, "content": get_text(text, f"{field} of {speaker}")})
    if not messages or messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": SYSTEM})
    roles = [message["role"] for message in messages]
    for before, role in itertools.pairwise(roles):
        if role == before:
            raise ValueError(f"two turns of one speaker in a row: {role}")
        if role == "system":
            raise ValueError("a system message after the first turn")
        if (before, role) == ("system", "assistant"):
            raise ValueError("an answer without a question")
    if "assistant" not in roles:
        raise ValueError("no answer")
    unanswered = roles[-1] == "user"
    if counts is not None:
        counts[f"conversations in {shape}"] += 1
        counts["questions at the end, without an answer, are dropped"] += unanswered
    return messages[: len(messages) - unanswered]


def convert_jsonl(command, convert, counts):
    """Write a .jsonl of the values that convert makes of each value that is read, and print its counts."""
    source, target = io_paths(command)
    print(f"reading {source}")
    archive = source.lower().endswith(".tar.bz2")
    if archive and encoding != "utf-8":
        raise InputError(f"--encoding={encoding}: an archive is read as UTF-8; unpack {source} first")
    unpacked = (line.decode("utf-8", "surrogateescape") for line in read_archive(source)) if archive else None
    converted = read_values(source, convert, limit=lines or None, encoding=encoding, lines=unpacked)
    write_jsonl(target, itertools.chain.from_iterable(tqdm(converted, "read", unit=" values")))
    for what, count in (+counts).items():
        print(f"{count:,} {what}")


def write_jsonl(path, values):
    """Write a JSON value a line. InputError, and no file, where there are none."""
    written = 0
    with atomic_write(path, "wb") as f:
        for value in values:
            f.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
            written += 1
        if not written:
            raise InputError(f"nothing to write to {path}: no line can be used")
    print(f"{path}: {written:,} lines")


def read_archive(path):
    """The lines of the JSON files in a .tar.bz2, a path or a stream, as bytes. Nothing is unpacked."""
    try:
        with tarfile.open(fileobj=bz2.open(path), mode="r|") as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(JSON_ENDINGS):
                    yield from tar.extractfile(member)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{getattr(path, 'url', path)} cannot be read to its end: {error}") from None


def read_texts_from_jsonl(path, start=0, end=None):
    """The texts in the lines of a .jsonl, or of a part of it."""
    return read_values(path, get_text, start, end)


def split_file(path):
    """
    [(start, end)], in bytes, of the parts of a .jsonl that become shards: 10 of equal size; more, of 64 MB,
    if it is large; fewer if they would be tiny. The first is for validation. A part begins only after a line
    that is no full chunk: after a full one, the next line may be of the same document.
    """
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if not (path.lower().endswith((".jsonl", ".ndjson")) and size):
        raise InputError(f"{path} is empty or not a .jsonl: run python prepare_data.py pretrain or sft")
    parts = max(2, min(max(10, size >> 26), size // 20_000))
    bounds = {0, size}
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for i in range(1, parts):
            begin = data.rfind(b"\n", 0, size * i // parts) + 1  # of the line there
            data.seek(begin)
            while is_full_chunk(data.readline()):
                pass
            is_long = data.tell() >= size * (i + 1) // parts  # a novel: it has to be cut somewhere
            bounds.add(begin if is_long else data.tell())
    if len(bounds) < 3:
        raise InputError(f"{path} is too short for a part to train on and a part to validate on")
    return list(itertools.pairwise(sorted(bounds)))


def is_full_chunk(line):
    value = parse(line.decode("utf-8", "surrogateescape"))
    return isinstance(value, dict) and len(str(value.get("text"))) == CHUNK


def pretokenize():
    """turn the chunks into shards of token ids"""
    pretokenize_parts("pretokenize", process_texts)


def pretokenize_parts(command, process, **extra):
    """Make a shard of each part of the file with process; returns the counts of the shards."""
    source, folder = io_paths(command)
    parts = enumerate(split_file(source))
    jobs = [{"name": f"data{i:02}", "path": source, "start": start, "end": end} for i, (start, end) in parts]
    meta = write_shards(folder, jobs, process, tokenizer, workers, **extra)
    return list(meta["shards"].values())


def process_texts(job, tok, dtype):
    """(ids, mask, counts) of a part of the chunks: for each BOS, its ids, EOS. There is no mask."""
    texts = read_texts_from_jsonl(job["path"], job["start"], job["end"])
    ids, counts = encode_documents(map(str.strip, texts), tok, dtype, eos=True)
    return ids, None, counts


def pretokenize_sft():
    """turn the conversations into rows of token ids, and masks of what is learned"""
    tok = Tokenizer(tokenizer)
    tok.encode_chat([])  # InputError if the tokenizer has no chat format
    warn_of_template(tok)
    show_chats(io_paths("pretokenize_sft")[0], tok)
    process = functools.partial(process_chats, row_len=max_seq_len)
    shards = pretokenize_parts("pretokenize_sft", process, row_len=max_seq_len)
    rows = sum(counts["rows"] for counts in shards)
    full = sum(counts["tokens_used"] for counts in shards) / max(1, rows) / (max_seq_len + 1)
    truncated = sum(counts["truncated"] for counts in shards)
    print(f"{rows:,} rows, {full:.0%} full; {truncated:,} conversations were longer than a row and are cut")


def process_chats(job, tok, dtype, row_len):
    """(ids, mask, counts) of a part of the conversations: rows of row_len + 1 ids, the mask a byte per id."""
    size = row_len + 1  # the targets are the inputs, one token later
    counts = dict.fromkeys(("documents", "skipped", "truncated", "bytes", "tokens", "tokens_used", "rows"), 0)
    all_ids = bytearray()
    all_masks = bytearray()
    chats = read_values(job["path"], tok.encode_chat, job["start"], job["end"])
    for ids, mask in pack(truncate(chats, tok, size, counts), size):
        padding = size - len(ids)
        all_ids += np.array(ids + [max(tok.pad_id, 0)] * padding, dtype).tobytes()
        all_masks += bytes(mask + [0] * padding)
        counts["rows"] += 1
    return bytes(all_ids), bytes(all_masks), counts


def truncate(chats, tok, size, counts):
    """The first `size` ids, and their mask, of each chat. Those with nothing to learn there are skipped."""
    for ids, mask in chats:
        learned = [i for i, m in zip(ids[:size], mask) if m]
        if not learned:  # a question that alone is longer than a row
            counts["skipped"] += 1
            continue
        counts["documents"] += 1
        counts["truncated"] += len(ids) > size
        counts["bytes"] += len(tok.decode(learned).encode("utf-8"))
        counts["tokens"] += len(learned)
        counts["tokens_used"] += min(size, len(ids))
        yield ids[:size], mask[:size]


def pack(chats, size):
    """Put (ids, mask) into rows of at most `size`, each into the first of the OPEN_ROWS newest with room."""
    rows = []
    for ids, mask in chats:
        row = next((row for row in rows if len(row[0]) + len(ids) <= size), None)
        if row is None:
            row = ([], [])
            rows.append(row)
            if len(rows) > OPEN_ROWS:
                yield rows.pop(0)
        row[0].extend(ids)
        row[1].extend([CHAT_START, *mask[1:]])  # the first id of a conversation is never learned
    yield from rows


def warn_of_template(tok):
    """Say so where a tokenizer's own chat template is not the tutorial's, in which chats are written here."""
    if tok.template and tok.template != CHAT_TEMPLATE:
        print(f"{tok.name}: its chat template differs; chats are written in the tutorial's", file=sys.stderr)


def show_chats(path, tok):
    """Print the first conversations token by token, with what is learned."""
    for ids, mask in itertools.islice(read_values(path, tok.encode_chat), show):
        print(f"--- {sum(mask)} of {len(ids)} tokens are learned")
        for i, m in zip(ids, mask):
            print(f"{'learned' if m else '':>7} {i:>6}  {tok.readable(i)}")


if __name__ == "__main__":
    given = override(globals(), COMMANDS)
    globals()[given["command"]]()
