"""
Documents, before they are ids: fetched from a hub, unpacked, and read out of files of three kinds.

    .json   a list of {"story": ...}, as TinyStories has it
    .jsonl  a {"text": ...} a line
    .txt    documents between <|endoftext|> lines

Files may be larger than the memory (but for .json, which is read whole), broken, or hostile: what is no
document is named by its place, and what a file says never runs.
"""

import glob
import hashlib
import json
import os
import re
import tarfile

from tqdm import tqdm

from configurator import atomic_write, first_line

END = "<|endoftext|>"  # stands between the documents of a .txt
LONGEST = 1 << 24  # bytes of a line of .jsonl; what is longer is no document, and must not fill the memory
PIECE = 1 << 20  # bytes of a document of .txt; what is longer becomes several


def write_json(path, value):
    with atomic_write(path) as f:
        json.dump(value, f, ensure_ascii=False, indent=None if isinstance(value, list) else 1)


def read_json(path):
    """A JSON file's value. ValueError names the file and the place where it is broken."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path} is broken at {where}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deep") from None


def texts_of(path, start=0, end=None, text_key="story"):
    """
    The documents of a file: (where, text), or (where, None) for what has none. start and end select a
    part: item numbers of a .json list, bytes of the other kinds (see cut).
    """
    if path.endswith(".json"):
        stories = read_json(path)
        if not isinstance(stories, list):
            raise ValueError(f"{path} is not a list of stories")
        for i, item in enumerate(stories[start:end], start):
            yield f"{path}: story {i}", field(item, text_key)
        return
    if path.endswith(".jsonl"):
        for at, item in json_lines(path, start, end):
            yield f"{path}: the line at byte {at}", field(item, text_key)
    else:
        for at, document in documents(path, start, os.path.getsize(path) if end is None else end):
            try:
                text = document.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 at byte {at + error.start}") from None
            if text:
                yield f"{path}: the document at byte {at}", text


def documents(path, start, end):
    """(byte at which it begins, its bytes) for each document of a part of a .txt; a long one in pieces."""
    mark, rest = END.encode(), b""
    with open(path, "rb") as f:
        f.seek(start)
        while start < end:
            block = f.read(min(PIECE, end - start - len(rest)))
            *whole, rest = (rest + block).split(mark)
            for document in whole:
                yield start, document
                start += len(document) + len(mark)
            if not block or len(rest) >= PIECE + len(mark):  # and not inside of a mark either
                at = len(rest) if not block else rest.rfind(b"\n", 0, PIECE) + 1 or PIECE
                while PIECE - 3 < at < len(rest) and rest[at] & 0xC0 == 0x80:  # not inside of a character
                    at -= 1
                yield start, rest[:at]
                start, rest = start + at, rest[at:]
                if not block:
                    return


def json_lines(path, start=0, end=None):
    """
    (byte at which the line begins, its value) for each line of a part of a .jsonl, one in memory at a
    time. None stands for a line that is no JSON, or longer than LONGEST.
    """
    with open(path, "rb") as f:
        f.seek(start)
        while end is None or start < end:
            line, size = read_line(f)
            if not line:
                return
            if not line.isspace():
                try:
                    yield start, json.loads(line) if size == len(line) else None
                except (ValueError, RecursionError):
                    yield start, None
            start += size


def read_line(f):
    """(the first LONGEST bytes of the next line of a binary file, its length); b"" at the end."""
    line = f.readline(LONGEST)
    size = len(rest := line)
    while len(rest) == LONGEST and not rest.endswith(b"\n"):
        rest = f.readline(LONGEST)
        size += len(rest)
    return line, size


def field(item, text_key):
    text = item.get(text_key) if isinstance(item, dict) else None
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer takes it
        return None
    return text


def cut(path, parts):
    """
    [(start, end)] of `parts` parts of a file of documents, of about one size, cut between documents (or,
    failing that, lines).
    """
    if path.endswith(".json"):
        size = len(read_json(path))
        return [(size * i // parts, size * (i + 1) // parts) for i in range(parts)]
    size, bounds = os.path.getsize(path), [0]
    mark = b"\n" if path.endswith(".jsonl") else END.encode()
    with open(path, "rb") as f:
        if mark not in f.read(1 << 20):
            mark = b"\n"
        for i in range(1, parts):
            if (at := size * i // parts) >= bounds[-1]:  # no very long line is read twice
                f.seek(at)
                bounds.append(at + _bytes_to(f, mark))
    bounds.append(size)
    return [(a, b) for a, b in zip(bounds, bounds[1:]) if a < b]


def _bytes_to(f, mark):
    """How many bytes from here to just behind the next mark (or the file's end)."""
    passed, read = 0, f.read(1 << 16)
    while mark not in read:
        passed += max(0, len(read) - len(mark))  # what is passed is let go: a line may be very long
        block = f.read(1 << 16)
        if not block:
            return passed + min(len(read), len(mark))
        read = read[-len(mark) :] + block
    return passed + read.index(mark) + len(mark)


# --------------------------------------------------------------------------------------------------------
# from a hub


def fetch(repo, name, folder):
    """
    Download a file of a dataset from the Hugging Face hub, or from a mirror named by HF_ENDPOINT; returns
    its path in `folder`. That path is the whole file or absent: it has the length that the hub says and, of
    large files, the sha256. What was cut off is kept beside it as .part, and the next call goes on there.
    ValueError says in one line what was in the way.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # comes with tokenizers
    from huggingface_hub.file_download import http_get  # hf_hub_download begins anew in each call

    path, url = os.path.join(folder, name), hf_hub_url(repo, name, repo_type="dataset")
    if os.path.exists(path):
        return path
    part = ""
    try:
        os.makedirs(folder, exist_ok=True)
        hub = get_hf_file_metadata(url)
        if not (hub.commit_hash and hub.etag and hub.size is not None):
            raise ValueError("what answers there is no hub (a page to log in at?)")
        part = f"{path}.{re.sub('[^0-9a-zA-Z]', '', hub.etag)[:16]}.part"  # no other version goes on in it
        with open(part, "ab") as f:
            if f.tell() > hub.size:
                f.truncate(0)
            http_get(hub.location, f, resume_size=f.tell(), expected_size=hub.size)
            f.flush()
            os.fsync(f.fileno())
        if len(hub.etag) == 64 and sha256_of(part) != hub.etag:
            raise OSError("it is not what the hub says, by its sha256, and was deleted")
    except Exception as error:  # of several libraries: HTTP, connection, disk
        if type(error) is OSError and not error.errno and part:  # whole, but something else
            os.remove(part)
        raise ValueError(f"could not download {url}: {first_line(error)}") from None
    os.replace(part, path)
    return path


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack(path, folder):
    """
    Unpack dataNN.json out of a .tar.gz. tarfile's data filter refuses names and links that lead out of the
    folder, and takes an absolute name for one inside it.
    """
    try:
        with (
            tqdm.wrapattr(open(path, "rb"), "read", os.path.getsize(path), desc="unpack") as f,
            tarfile.open(fileobj=f) as tar,
        ):
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
            raise
        os.remove(path)
        raise ValueError(f"{path} is not a sound archive and was deleted: {error}") from None
    for found in glob.glob(os.path.join(glob.escape(folder), "**", "data*.json"), recursive=True):
        os.replace(found, os.path.join(folder, os.path.basename(found)))
