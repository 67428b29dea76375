"""Downloads from a local server that answers as both hubs do."""

import http.server
import io
import json
import os
import sys
import tarfile
import threading

import huggingface_hub.constants
import pytest

from configurator import InputError
from prepare_data import BELLE, SEQ_MONKEY
from tests.fixtures import SMALL, flags, prepare, read_rows, run_here

ARCHIVE = f"{SEQ_MONKEY}.tar.bz2"
VALID = "TinyStoriesV2-GPT4-valid.txt"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        name = next((name for name in self.server.files if name in self.path), None)
        data = self.server.files.get(name, b"")
        self.send_response(200 if name else 404)
        for header, value in (("Content-Length", len(data)), ("ETag", '"1"'), ("X-Repo-Commit", "0" * 40)):
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET" and name:
            self.wfile.write(data[: len(data) * 7 // 10] if self.server.hangs else data)
            if self.server.hangs:
                self.server.ended.wait()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    """hub(files, where, hangs): the hub `where` has the files; if it hangs, their end never comes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked, server.ended = [], threading.Event()

    def start(files, where="modelscope", hangs=False):
        server.files, server.hangs = files, hangs
        urls = dict.fromkeys(("modelscope", "huggingface"), "http://127.0.0.1:9")  # there is nobody
        urls[where] = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", urls["modelscope"])
        template = urls["huggingface"] + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        return server

    yield start
    server.ended.set()
    server.shutdown()


@pytest.fixture
def corpora():
    """The two files of the Chinese track, of 2,000 lines each."""
    rows = (json.dumps({"text": os.urandom(150).hex()}).encode() + b"\n" for _ in range(2000))
    lines, raw = b"".join(rows), io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:bz2", compresslevel=1) as tar:
        info = tarfile.TarInfo("folder/corpus.jsonl")
        info.size = len(lines)
        tar.addfile(info, io.BytesIO(lines))
    return {ARCHIVE: raw.getvalue(), BELLE: lines}


def test_a_part_of_an_archive_is_read_as_a_stream(corpora, tmp_path):
    path, data = tmp_path / ARCHIVE, corpora[ARCHIVE]
    path.write_bytes(data)
    prepare("pretrain", path, tmp_path / "all.jsonl")
    path.write_bytes(data[: len(data) // 2])  # a download that was cut off
    prepare("pretrain", path, tmp_path / "part.jsonl", "--lines=50")
    rows = [json.loads(line) for line in corpora[BELLE].splitlines()]
    assert read_rows(tmp_path / "all.jsonl") == rows and read_rows(tmp_path / "part.jsonl") == rows[:50]
    with pytest.raises(InputError, match="bz2 cannot be read to its end"):
        prepare("pretrain", path, tmp_path / "half.jsonl")
    assert not list(tmp_path.glob("half*"))


def test_lines_ends_a_download(hub, corpora, tmp_path, capsys):
    server = hub(corpora, hangs=True)  # who waits for more never gets it
    beginning = b"".join(corpora[BELLE].splitlines(keepends=True)[:30])
    for _ in range(2):  # what is there is not asked for again
        run_here("prepare_data.py", "download", f"--data_dir={tmp_path}", "--lines=30")
        for name in (SEQ_MONKEY, BELLE):
            assert (tmp_path / name).read_bytes() == beginning
    said = capsys.readouterr().out
    for name, repo in ((ARCHIVE, "ddzhu123/seq-monkey"), (BELLE, "swift/train_3.5M_CN")):
        assert f"{name}, {len(corpora[name]) / 1e6:.1f} MB, of {repo} on modelscope\n" in said
    assert said.count("taking its first 30 lines") == len(server.asked) == 2


@pytest.mark.parametrize("first", ["huggingface", "modelscope"])
def test_a_hub_that_answers_gives_every_story(hub, tmp_path, capsys, first):
    stories = [f"Story {n}.\n\nIt has two paragraphs." for n in range(230)]
    hub({VALID: "\n<|endoftext|>\n".join(stories).encode()}, where="huggingface")
    run_here("tinystories.py", "download", "--small", f"--data_dir={tmp_path}", f"--hub={first}")
    files = [json.loads(p.read_text()) for p in (tmp_path / "TinyStories_all_data").glob("data*.json")]
    assert len(files) == 50 and {len(file) for file in files} == {4, 5}
    assert sorted(item["story"] for file in files for item in file) == sorted(stories)
    assert (tmp_path / VALID).is_file() and "on huggingface\n" in capsys.readouterr().out


def test_without_a_network_training_begins_with_synthetic_stories(hub, tmp_path, monkeypatch, capsys):
    hub({})
    monkeypatch.setitem(sys.modules, "modelscope", None)  # it is not installed
    options = flags(data_dir=tmp_path, vocab_size=400, megabytes=0.3)
    with pytest.raises(InputError, match="roneneldan/TinyStories on hugg.*: pip install modelscope"):
        run_here("tinystories.py", "download", *options)
    run_here("tinystories.py", "pretokenize", *options)
    said = capsys.readouterr().out
    assert "could not download" in said and "SYNTHETIC stories" in said
    run_here("train.py", *SMALL, *options[:2], *flags(out_dir=tmp_path / "out", max_iters=1, eval_iters=1))
    assert (tmp_path / "out" / "last.pt").exists()
