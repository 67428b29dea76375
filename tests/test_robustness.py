"""Numbers that go wrong, full disks, preparation that is killed, downloads, hostile input."""

import hashlib
import http.server
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch

import documents
import model as M
import prepare_data
import shards
import tinystories
from checkpoints import load_checkpoint, plain_args
from tests.fixtures import (
    HERE,
    SMALL,
    children,
    dataset,
    needs_proc,
    random_checkpoint,
    read_bytes,
    read_rows,
    run,
    tinystories_in,
    user,
    write_rows,
)
from tests.torture import tortured
from tinystories import PretokDataset
from tokenizer import Tokenizer

pytest_plugins = ["tests.fixtures"]

# --------------------------------------------------------------------------------------------------------
# numbers that go wrong, full disks, preparation that is killed


def test_a_step_whose_gradients_are_not_finite_changes_nothing_and_is_counted(data, tmp_path):
    order, ds = dataset(data).order(0), dataset(data)
    inputs = [ds[[int(i) for i in order[8 * step : 8 * step + 8]]][0] for step in range(12)]  # (8, 64) a step
    with_id = {i: [step for step, x in enumerate(inputs) if (x == i).any()] for i in range(259, 512)}
    rare, bad = next(
        (i, steps) for i, steps in with_id.items() if 2 <= len(steps) <= 3 and steps[-1] - steps[0] > 2
    )
    torch.manual_seed(0)
    model = M.Transformer(
        M.ModelArgs(dim=64, n_layers=2, n_heads=4, vocab_size=512, max_seq_len=64, tie_embeddings=False)
    )
    model.tok_embeddings.weight.data[rare] = math.inf  # whatever reads it is no number
    torch.save({"model": model.state_dict(), "model_args": plain_args(model.args)}, tmp_path / "inf.pt")
    said, _ = run(
        "train.py",
        *SMALL,
        f"--data_dir={data}",
        f"--init_from={tmp_path}/inf.pt",
        f"--out_dir={tmp_path}/out",
        "--max_iters=12",
        "--log_interval=2",
        "--eval_interval=100",
        "--eval_iters=1",
    )
    assert f"{len(bad)} steps whose gradients were not finite were skipped" in said
    text = (tmp_path / "out" / "log.jsonl").read_text()
    rows = [r for r in map(json.loads, text.splitlines()) if "loss" in r]
    assert {r["step"] for r in rows if r["loss"] is None} == {
        step for step in bad if step % 2 == 0
    } and "NaN" not in text
    assert not (
        tmp_path / "out" / "last.pt"
    ).exists()  # weights that are not finite are no state to go on from


@pytest.fixture
def small_disk(tmp_path):
    """A function of a size: mounts a file system of so many KB, or makes it so large; returns its folder."""
    folder, mounted = tmp_path / "disk", []
    folder.mkdir()

    def mount(kilobytes):
        options = f"{'remount,' * len(mounted)}size={kilobytes}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        )
        if done.returncode:
            pytest.skip("only root may mount a small file system")
        mounted[:] = [folder]
        return folder

    try:
        yield mount
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_in_the_middle_of_a_save_leaves_the_older_file(trained, small_disk):
    size = os.path.getsize(os.path.join(trained, "last.pt")) // 1024
    out = small_disk(size * 5 // 2)  # room for two, not for the third while it is written
    for name in ("last.pt", "ckpt.pt", "log.jsonl"):
        shutil.copy2(os.path.join(trained, name), out)
    before = [read_bytes(path) for path in sorted(out.glob("*.pt"))]
    args = (
        "train.py",
        "--init_from=resume",
        f"--out_dir={out}",
        "--max_iters=43",
        "--eval_interval=100",
        "--device=cpu",
    )
    _, complaint = run(*args, ok=False)
    assert re.search(rf"train.py: \[Errno 28\] No space left on device: '{out}/(last|ckpt)\.pt'", complaint)
    assert [read_bytes(path) for path in sorted(out.glob("*.pt"))] == before and not list(out.glob("*.tmp"))
    small_disk(size * 4)
    run(*args)
    assert torch.load(out / "last.pt", weights_only=True)["iter_num"] == 43


def test_a_disk_that_is_full_in_the_middle_of_a_shard_leaves_the_others(data, small_disk):
    disk = small_disk(1024)  # about half of the shards
    args = (
        "tinystories.py",
        "pretokenize",
        f"--data_dir={data}",
        "--vocab_size=512",
        f"--vocab_source={disk}/ids",
    )
    complaint = run(*args, ok=False)[1].splitlines()[-1]
    assert (
        "No space left on device" in complaint
        and f"{disk}/ids/" in complaint
        and not list(disk.glob("ids/*.tmp"))
    )
    with pytest.raises(ValueError, match="unfinished"):
        shards.read_meta(f"{disk}/ids")
    done = {name: (disk / "ids" / f"{name}.bin").stat().st_mtime_ns
            for name in documents.read_json(disk / "ids" / "meta.partial.json")["shards"]}  # fmt: skip
    small_disk(8192)
    run(*args)
    assert_same_shards(disk / "ids", os.path.join(data, "tok512"))
    assert 5 < len(done) < 50 and all(
        (disk / "ids" / f"{n}.bin").stat().st_mtime_ns == t for n, t in done.items()
    )


def assert_same_shards(folder, other):
    names = [sorted(n for n in os.listdir(f) if n != "meta.json") for f in (folder, other)]
    assert names[0] == names[1]
    assert all(read_bytes(os.path.join(folder, n)) == read_bytes(os.path.join(other, n)) for n in names[0])
    metas = [documents.read_json(os.path.join(f, "meta.json")) for f in (folder, other)]
    assert [m | {"tokenizer": ""} for m in metas][0] == [m | {"tokenizer": ""} for m in metas][
        1
    ]  # it is a path


@needs_proc
@pytest.mark.parametrize("maker", ["tinystories.py", "prepare_data.py"])
def test_shards_killed_half_way_go_on_and_are_the_same(data, zh, tmp_path, maker):
    folder, args = (
        tmp_path / "ids",
        ("--vocab_size=512", f"--data_dir={data}", f"--vocab_source={tmp_path}/ids"),
    )
    if maker == "prepare_data.py":
        rows = [row for row in read_rows(zh / "chunks.jsonl") for _ in range(8)]
        write_rows(tmp_path / "chunks.jsonl", rows)
        args = (f"--input={tmp_path}/chunks.jsonl", f"--tokenizer={zh}/tokenizer_k", f"--output={folder}")
    command = [sys.executable, maker, "pretokenize", *args, "--workers=2"]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(folder.glob("*.bin"))) < 4:
        time.sleep(0.001)
    pool = children(process.pid)
    process.kill()
    process.wait()
    done = (
        documents.read_json(folder / "meta.partial.json")["shards"]
        if (folder / "meta.partial.json").exists()
        else {}
    )
    times = {name: (folder / f"{name}.bin").stat().st_mtime_ns for name in done}
    assert not (folder / "meta.json").exists() and done
    until = time.time() + 20
    while set(pool) & set(
        children(None)
    ):  # they end by themselves, and nobody writes a shard that we write now
        assert time.time() < until
        time.sleep(0.05)
    run(maker, "pretokenize", *args)
    assert all((folder / f"{name}.bin").stat().st_mtime_ns == t for name, t in times.items())
    undisturbed = os.path.join(data, "tok512")
    if maker == "prepare_data.py":
        undisturbed = tmp_path / "undisturbed"
        run(maker, "pretokenize", *args[:2], f"--output={undisturbed}")
    assert_same_shards(folder, undisturbed)


# --------------------------------------------------------------------------------------------------------
# downloads


class Hub(http.server.BaseHTTPRequestHandler):
    """
    A hub on the loopback address. server.answers says how each download (a HEAD, then GETs) goes: whole;
    cut (half of what was asked for, then nothing); short (fewer bytes than said before); forged (other
    bytes, as many); page (one to log in at). server.ranges is what was asked for.
    """

    def do_HEAD(self):
        self.server.answer = self.server.answers.pop(0)
        self.send(b"")

    def do_GET(self):
        self.send(self.server.files.get(self.path.rpartition("/resolve/main/")[2]))

    def send(self, body):
        server, content, start = (
            self.server,
            self.server.files.get(self.path.rpartition("/resolve/main/")[2]),
            0,
        )
        if content is None or server.answer == "dead":
            return self.send_error(503)
        if server.answer == "page":
            content = body = b"<html>Please log in</html>"
        if body:
            server.ranges.append(asked := self.headers.get("Range"))
            start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked else 0
            body = {"short": b"<html>", "forged": bytes(len(content))}.get(server.answer, body)[start:]
        self.send_response(206 if start else 200)
        if server.answer != "page":
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", len(body or content))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if server.answer == "cut" else body)
        if body and server.answer == "cut":
            server.answer = "dead"

    def log_message(self, *_):
        pass


DOWNLOADS = """
import sys, time
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000  # the client keeps whole chunks; its own are of 10 MB
time.sleep = lambda _: None  # it waits a second before it tries again
import prepare_data, tinystories
folder, *what = sys.argv[1:]
tinystories.data_dir, tinystories.small = folder, True
for name in what:
    try:
        print(prepare_data.fetch_belle(folder) if name == "belle" else tinystories.download())
    except ValueError as error:
        print("ERROR", error, len(tinystories.story_files()))
"""


def test_a_download_is_whole_or_absent_and_goes_on_where_it_was_cut_off(tmp_path):
    stories = [f"Story {i}. " + "It was long. " * 20 for i in range(120)]
    text, belle = "\n<|endoftext|>\n".join(stories).encode(), b'{"conversations": []}\n' * 500
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        hub.files, hub.ranges = {"TinyStoriesV2-GPT4-valid.txt": text, prepare_data.BELLE: belle}, []
        hub.answers = ["page", "short", "forged", "cut", "whole", "cut", "whole", "none is asked for"]
        env = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
            "NO_PROXY": "127.0.0.1",
        }
        what = ["stories"] * 5 + ["belle"] * 2 + ["stories"]
        done = subprocess.run([sys.executable, "-c", DOWNLOADS, str(tmp_path), *what], cwd=HERE, env=env,
                              capture_output=True, text=True)  # fmt: skip
        hub.shutdown()
    assert done.returncode == 0 and hub.answers == ["none is asked for"], (
        done.stderr
    )  # the file was there by then
    lines = done.stdout.splitlines()
    says = ("is no hub", f"should be of size {len(text)} but has size 6", "by its sha256", "503")
    for line, reason in zip(lines, says):  # one line each, with nothing there that could be taken for stories
        assert (
            line.startswith("ERROR could not download http://127.0.0.1")
            and reason in line
            and line.endswith(" 0")
        )
    first = [int(re.match(r"bytes=(\d+)-", asked)[1]) for asked in hub.ranges if asked]
    assert (
        all(len(text) // 2 - 1000 < n <= len(text) // 2 for n in first[:-1])
        and 4000 < first[-1] <= len(belle) // 2
    )
    assert hub.ranges[:3] == [None] * 3 and hub.ranges[-1]
    found = [
        s["story"]
        for i in range(50)
        for s in documents.read_json(tmp_path / "TinyStories_all_data" / f"data{i:02}.json")
    ]
    assert (
        sorted(found) == sorted(s.strip() for s in stories)
        and read_bytes(tmp_path / prepare_data.BELLE) == belle
    )
    names = ["TinyStoriesV2-GPT4-valid.txt", "TinyStories_all_data", "corpus.json", prepare_data.BELLE]
    assert sorted(os.listdir(tmp_path)) == names


def test_without_a_network_there_is_one_line_and_no_file(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{s.getsockname()[1]}", "NO_PROXY": "127.0.0.1"}
    _, complaint = run("prepare_data.py", "download", f"--output={tmp_path}", ok=False, env=env)
    assert "refused" in complaint.splitlines()[-1] and "train_3.5M_CN" in complaint.splitlines()[-1]
    assert not os.listdir(tmp_path)


def add_to_tar(tar, name, content=b"[]", link=None, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = (0, kind, link) if link else (len(content), kind, "")
    tar.addfile(info, None if link else io.BytesIO(content))


@pytest.mark.parametrize("name, link, kind", [
    ("../data99.json", None, tarfile.REGTYPE),
    ("a/../../../data99.json", None, tarfile.REGTYPE),
    ("data99.json", "/etc/passwd", tarfile.SYMTYPE),
    ("data99.json", "../../../etc/passwd", tarfile.SYMTYPE),
    ("data99.json", "../../../etc/passwd", tarfile.LNKTYPE),
])  # fmt: skip
def test_an_archive_cannot_write_or_point_outside_of_its_folder(tmp_path, name, link, kind):
    path = tmp_path / "data" / "evil.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        add_to_tar(tar, "data00.json")
        add_to_tar(tar, name, link=link, kind=kind)
    with tinystories_in(path.parent):
        with pytest.raises(ValueError, match="evil.tar.gz is not a sound archive and was deleted"):
            with tinystories.new_stories("evil") as folder:
                tinystories.unpack(str(path), folder)
        assert not tinystories.story_files()  # what came before the bad name does not count either
    assert not path.exists() and not list(tmp_path.glob("data99.json")) and os.listdir(tmp_path) == ["data"]


def test_an_absolute_name_in_an_archive_stays_in_its_folder(tmp_path):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        add_to_tar(tar, f"{tmp_path}/outside/data00.json")
    tinystories.unpack(str(tmp_path / "evil.tar.gz"), str(tmp_path / "in"))
    assert (
        sorted(os.listdir(tmp_path)) == ["evil.tar.gz", "in"] and (tmp_path / "in" / "data00.json").exists()
    )


def test_names_and_links_in_seq_monkeys_archive_are_never_followed(tmp_path):
    with tarfile.open(tmp_path / "m.jsonl.tar.bz2", "w:bz2") as tar:
        add_to_tar(tar, "../out.jsonl", b'{"text": "a"}\n')
        add_to_tar(tar, "link.jsonl", link="/etc/passwd", kind=tarfile.SYMTYPE)
        add_to_tar(tar, f"{tmp_path}/abs.jsonl", b'{"text": "b"}\n')
    lines = [line for _, line in prepare_data.lines_of(str(tmp_path / "m.jsonl.tar.bz2"))]
    assert lines == [b'{"text": "a"}\n', b'{"text": "b"}\n'] and os.listdir(tmp_path) == ["m.jsonl.tar.bz2"]


# --------------------------------------------------------------------------------------------------------
# hostile input


class Bomb:
    """What unpickles as a call of os.mkdir."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_cannot_run_anything(tmp_path):
    bomb = Bomb(tmp_path / "hit")
    pickle.loads(pickle.dumps(bomb))
    os.rmdir(tmp_path / "hit")  # it is a real one
    full = {"model": {}, "model_args": {}, "config": bomb}
    for i, write in enumerate((
        lambda f: pickle.dump(bomb, f),
        lambda f: torch.save(full, f),
        lambda f: torch.save(full, f, _use_new_zipfile_serialization=False),
    )):  # fmt: skip
        with open(tmp_path / f"{i}.pt", "wb") as f:
            write(f)
        with pytest.raises(ValueError, match=f"{i}.pt is no checkpoint"):
            load_checkpoint(str(tmp_path / f"{i}.pt"))
    assert sorted(os.listdir(tmp_path)) == ["0.pt", "1.pt", "2.pt"]


def cut_short(content, rng):
    return content[: rng.randrange(len(content))]


def with_other_bytes(count):
    def damage(content, rng):
        damaged = bytearray(content)
        for _ in range(count):
            damaged[rng.randrange(2000)] = rng.randrange(256)
        return damaged

    return damage


# How many of 20 are refused: all that are cut; of other bytes, those that torch needs to find its way.
@pytest.mark.parametrize(
    "damage, at_least", [(cut_short, 20), (with_other_bytes(1), 5), (with_other_bytes(20), 15)]
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage, at_least):
    content, rng = read_bytes(random_checkpoint(tmp_path / "good.pt")), random.Random(0)
    refused = 0
    for _ in range(20):
        (tmp_path / "bad.pt").write_bytes(damage(content, rng))
        try:
            load_checkpoint(str(tmp_path / "bad.pt"))
        except ValueError as error:  # anything else fails the test
            assert str(error).startswith(f"{tmp_path}/bad.pt is")
            refused += 1
    assert refused >= at_least


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.mkdir(PATH) }}",
    "{{ lipsum.__globals__['os'].mkdir(PATH) }}",
    "{{ (messages|attr('__class__')).__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['json'].codecs.open(PATH, 'w') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '%s'|format(messages.__class__.__mro__[1]) }}",
    "{% include '/etc/passwd' %}",
    "{% for m in messages %}{{ m.update({'role': 'system'}) }}{% endfor %}",
)


def test_no_template_reaches_files_or_python(tok, tmp_path):
    jinja2 = pytest.importorskip("jinja2")
    plain = ESCAPES[0].replace("PATH", repr(f"{tmp_path}/hit"))
    jinja2.Environment().from_string(plain).render()
    os.rmdir(tmp_path / "hit")  # it is a real one
    for template in ESCAPES:
        config = json.dumps({"chat_template": template.replace("PATH", repr(f"{tmp_path}/hit"))})
        with pytest.raises(ValueError, match="chat template"):
            Tokenizer(
                {"kind": "tokenizers", "files": tok.files | {"tokenizer_config.json": config.encode()}}
            ).render([user("a")])
    assert not os.listdir(tmp_path)


DEEP = b"[" * 100_000


def test_json_nested_100000_deep_is_refused_or_skipped_by_name(tok, tmp_path):
    for name in ("data00.json", "meta.json"):
        (tmp_path / name).write_bytes(DEEP)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + DEEP + b'\n{"text": "b"}\n')
    with pytest.raises(ValueError, match="data00.json is nested too deep"):
        list(documents.texts_of(str(tmp_path / "data00.json")))
    with pytest.raises(ValueError, match="meta.json is nested too deep"):
        shards.read_meta(str(tmp_path))
    found = list(documents.texts_of(str(tmp_path / "a.jsonl"), text_key="text"))
    assert [text for _, text in found] == ["a", None, "b"] and found[1][0].endswith(
        "a.jsonl: the line at byte 14"
    )
    for name in ("tokenizer_config.json", "tokenizer.json"):
        with pytest.raises(ValueError, match="not a tokenizer"):
            Tokenizer({"kind": "tokenizers", "files": tok.files | {name: DEEP}})


LONG_LINE = """
import resource, sys
import documents, prepare_data
path, out = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_data.input, prepare_data.output = path, out
prepare_data.pretrain()
print([item for _, item in documents.json_lines(path)])
print(len(documents.cut(path, 10)), max(len(d) for _, d in documents.documents(path, 0, 1 << 29)) <= 3 << 20)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(used // (1 << 20 if sys.platform == "darwin" else 1 << 10))
"""


def test_a_line_of_500_mb_is_named_and_takes_little_memory(tmp_path):
    with open(tmp_path / "long.jsonl", "wb") as f:  # it has a hole: no disk is filled
        f.write(b'{"text": "a"}\n')
        f.seek(500_000_000)
        f.write(b'\n{"text": "b"}\n')
    done = subprocess.run(
        [sys.executable, "-c", LONG_LINE, f"{tmp_path}/long.jsonl", f"{tmp_path}/out.jsonl"],
        cwd=HERE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "long.jsonl, line 2: longer than 16,777,216 bytes" in done.stderr
    assert [row["text"] for row in read_rows(tmp_path / "out.jsonl")] == ["a", "b"]
    _, items, parts, megabytes = done.stdout.splitlines()
    assert items == "[{'text': 'a'}, None, {'text': 'b'}]" and parts == "2 True" and int(megabytes) < 100


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good" + b"<|endoftext|>" + b"\xff\xfe bad")
    (tmp_path / "a.json").write_bytes(b'[{"story": "\xff"}]')
    for name, at in (("a.txt", 17), ("a.json", 12)):
        with pytest.raises(ValueError, match=f"{name} is not UTF-8 at byte {at}"):
            list(documents.texts_of(str(tmp_path / name)))
    (tmp_path / "a.jsonl").write_bytes(
        b'{"story": "\xff"}\n\0\0\0\n{"story": "a\0"}\n{"story": "\\u0000b"}\n'
    )
    assert [text for _, text in documents.texts_of(str(tmp_path / "a.jsonl"))] == [None, None, None, "\0b"]
    (tmp_path / "b.txt").write_bytes(b"a\0b<|endoftext|>\0")
    assert [text for _, text in documents.texts_of(str(tmp_path / "b.txt"))] == ["a\0b", "\0"]


def test_a_long_document_of_a_txt_is_cut_and_nothing_of_it_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 50)
    rng, path = random.Random(0), str(tmp_path / "a.txt")
    for _ in range(300):
        texts = ["".join(rng.choices("ab é龍\n😀", k=rng.choice((0, 3, 40, 130)))) for _ in range(4)]
        content = documents.END.join(texts).encode()
        (tmp_path / "a.txt").write_bytes(content)
        found, end = list(documents.documents(path, 0, len(content))), 0
        for at, document in found:
            document.decode("utf-8")  # no character is cut in two
            assert len(document) <= 3 * 50 and content[end:at] in (b"", documents.END.encode())
            assert content[at : at + len(document)] == document
            end = at + len(document)
        assert content[end:] in (b"", documents.END.encode())


def test_training_refuses_shards_that_lie(data, tmp_path):
    folder = tmp_path / "ids"
    shutil.copytree(os.path.join(data, "tok512"), folder)
    shutil.copy(os.path.join(data, "tok512.model"), tmp_path)
    for path in sorted(folder.glob("*.bin"))[2:]:
        path.unlink()
    ids = np.fromfile(folder / "data01.bin", "<u2")
    ids[100::64] = 777  # one in each chunk
    ids.tofile(folder / "data01.bin")
    _, complaint = run(
        "train.py",
        *SMALL,
        f"--vocab_source={folder}",
        f"--out_dir={tmp_path}/out",
        "--num_workers=1",
        ok=False,
    )
    found = re.search(
        r"data01\.bin: id 777 at (\d+) is outside the vocabulary of 512", complaint.splitlines()[-1]
    )
    assert found and int(found[1]) % 64 == 100 % 64
    (folder / "meta.json").write_text('{"vocab_size": 512, "dtype": "object"}')
    with pytest.raises(ValueError, match="meta.json does not say vocab_size and dtype"):
        PretokDataset("train", 64, 512, str(folder))
    (folder / "meta.json").write_text('{"vocab_size": 512, "dtype": "uint16", "row_len": 64}')
    for path in folder.glob("*.bin"):
        path.with_suffix(".mask").write_bytes(bytes(200))
    with pytest.raises(ValueError, match="data01.bin has .* ids, and 200 bytes of mask"):
        PretokDataset("train", 64, 512, str(folder))


# --------------------------------------------------------------------------------------------------------
# a run that is killed: the torture, once


def test_a_run_killed_in_the_middle_of_a_save_goes_on_from_the_older_file(data, tmp_path):
    ((hit, _),) = tortured(1, str(tmp_path), data, max_iters=12, moments=("save",))
    assert hit.startswith("in a save")
