"""What must not harm a run or its files: broken numbers, full disks, kills, hostile or damaged files."""

import io
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch

import tinystories
from configurator import InputError, read_json
from model import Transformer, load_checkpoint, model_args_dict
from sample import TextGenerator
from tests.fixtures import (
    HERE,
    SMALL,
    children,
    dataset,
    flags,
    needs_proc,
    random_checkpoint,
    read_bytes,
    read_rows,
    run,
    small_model,
)

pytest_plugins = ["tests.fixtures"]


# --------------------------------------------------------------------------------------------------------
# checkpoints


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
    for zipped in (True, False):  # the two formats of torch.save
        saved = {"model": {}, "model_args": {}, "config": bomb}
        torch.save(saved, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(pickle.UnpicklingError):
            load_checkpoint(str(tmp_path / "bomb.pt"))
    assert os.listdir(tmp_path) == ["bomb.pt"]


def test_a_damaged_checkpoint_does_not_load_silently(tmp_path):
    content = read_bytes(random_checkpoint(tmp_path / "good.pt"))
    rng = random.Random(0)
    for length in [0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(40))]:
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises((RuntimeError, OSError, EOFError, pickle.UnpicklingError)):
            load_checkpoint(str(tmp_path / "cut.pt"))
    for change in ({"layers.1.attention.wk.weight": torch.zeros(3, 3)}, {"another.weight": torch.zeros(3)}):
        saved = load_checkpoint(str(tmp_path / "good.pt"))
        saved["model"] |= change
        with pytest.raises(RuntimeError, match=next(iter(change))):
            Transformer.from_checkpoint(saved)
    saved = load_checkpoint(str(tmp_path / "good.pt"))
    del saved["model"]["layers.1.attention.wk.weight"]
    with pytest.raises(RuntimeError, match="layers.1.attention.wk.weight"):
        Transformer.from_checkpoint(saved)


@pytest.mark.parametrize("option", [
    "eval_interval", "log_interval", "save_interval", "eval_iters", "batch_size", "max_seq_len", "max_iters",
    "gradient_accumulation_steps", "dim", "n_layers", "n_heads", "multiple_of",
])  # fmt: skip
def test_zero_is_refused_where_nothing_can_be_done_with_it(data, tmp_path, option):
    options = flags(data_dir=data, out_dir=tmp_path / "out")
    _, error = run("train.py", *SMALL, *options, f"--{option}=0", ok=False)
    assert f"argument --{option}: expects a whole number, at least 1, not '0'" in error
    assert not os.path.exists(tmp_path / "out")


@pytest.mark.parametrize("option", ["dropout", "beta1", "beta2"])
def test_a_probability_of_one_is_refused(data, tmp_path, option):
    _, error = run("train.py", f"--{option}=1.0", ok=False)
    assert f"argument --{option}: expects a number, at least 0, below 1, not '1.0'" in error


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_whose_gradients_are_not_finite_are_skipped_and_three_in_a_row_end_the_run(
    data, tmp_path, optimizer
):
    # A step is one sequence. Four of them have an id that no other step has: its embedding becomes infinite.
    shards = dataset(data)
    steps = [set(shards[int(i)][0].tolist()) for i in shards.order(0)[:10]]
    bad_ids = [min(steps[bad] - set().union(*steps[:bad], *steps[bad + 1 :])) for bad in (2, 6, 7, 8)]
    model = small_model(vocab_size=512, max_seq_len=64, tie_embeddings=False)
    model.tok_embeddings.weight.data[bad_ids] = math.inf
    torch.save({"model": model.state_dict(), "model_args": model_args_dict(model.args)}, tmp_path / "inf.pt")

    options = flags(data_dir=data, init_from=tmp_path / "inf.pt", out_dir=tmp_path / "out", save_interval=1)
    options += flags(batch_size=1, gradient_accumulation_steps=1, optimizer=optimizer)
    printed, error = run("train.py", *SMALL, *options, ok=False)
    assert "train.py: stopped: 3 steps in a row had gradients that are not finite\n" in error
    assert re.findall(r"step (\d+): loss nan, gradient norm nan: skipped", printed) == ["2", "6", "7", "8"]
    rows = [row for row in read_rows(tmp_path / "out" / "log.jsonl") if "loss" in row]
    assert [row["step"] for row in rows if row["loss"] is None] == [2, 6, 7, 8]
    last = torch.load(tmp_path / "out" / "last.pt", weights_only=True)
    assert last["iter_num"] == 8
    assert last["optimizer"]["state"][0]["step"] == 5  # steps that changed the weights: 0, 1, 3, 4, 5
    last["model"]["tok_embeddings.weight"][bad_ids] = 0
    if optimizer == "muon":
        state = last["optimizer"]["state"].values()
        buffers = [s["momentum_buffer"] for s in state if "momentum_buffer" in s]
        assert len(buffers) == 21 and all(buffer.isfinite().all() for buffer in buffers)
    assert all(weight.isfinite().all() for weight in last["model"].values())


def test_a_save_that_fails_half_way_leaves_the_older_file(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    paths = [tmp_path / "out" / name for name in ("last.pt", "ckpt.pt")]
    before = [read_bytes(path) for path in paths]
    options = flags(init_from="resume", out_dir=tmp_path / "out", max_iters=43, eval_interval=100)
    limit = len(before[0]) // 2  # bytes in a file, as if the disk were full then
    done = subprocess.run(
        [sys.executable, "train.py", *options],
        cwd=HERE,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert [read_bytes(path) for path in paths] == before and not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("saved", ["last.pt", "ckpt.pt", ""])
@pytest.mark.parametrize("mode, names", [("synthetic", "output"), ("chat", "output_chat output_chat_sft")])
def test_the_quick_start_resumes_a_training_that_was_interrupted(tmp_path, mode, names, saved):
    """Its commands only: a virtual environment whose python writes down what it is asked."""
    folders = names.split()
    for name in ("quickstart.sh", "requirements.txt"):
        shutil.copy(os.path.join(HERE, name), tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for name in ("python", "pip"):
        stub = tmp_path / ".venv" / "bin" / name
        stub.write_text('#!/bin/sh\necho "$@" >> asked\n[ "$1" != -c ]\n')  # there is no GPU
        stub.chmod(0o755)
    for folder in folders if saved else ():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / saved).touch()
    env = os.environ | {"PYTHON": "false"}  # it makes no virtual environment
    command = ["bash", tmp_path / "quickstart.sh", mode]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    asked = (tmp_path / "asked").read_text().splitlines()
    trainings = [line.split() for line in asked if line.startswith("train.py ")]
    assert [words[1] for words in trainings] == [f"--out_dir={folder}" for folder in folders]
    for words in trainings:
        assert ("--init_from=resume" in words) == bool(saved) == (len(words) == 3)
    assert any(line.startswith(f"sample.py --checkpoint={folders[-1]}/ckpt.pt") for line in asked)


# --------------------------------------------------------------------------------------------------------
# data


@needs_proc
def test_shards_of_a_run_that_was_killed_are_resumed_and_are_the_same(data, tmp_path):
    os.symlink(f"{data}/TinyStories_all_data", tmp_path / "TinyStories_all_data")
    shutil.copy(f"{data}/tok512.model", tmp_path)
    folder = tmp_path / "tok512"
    command = ["tinystories.py", "pretokenize", f"--data_dir={tmp_path}", "--vocab_size=512", "--workers=2"]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(folder.glob("*.bin"))) < 5:
        time.sleep(0.001)
    workers = children(process.pid)
    process.kill()
    process.wait()
    done = read_json(folder / "meta.json")["shards"]
    assert workers and 0 < len(done) < 50
    with pytest.raises(InputError, match="no finished shards"):
        tinystories.read_meta(str(folder))
    until = time.time() + 20
    while set(workers) & set(children(None)):  # no worker stays alive
        assert time.time() < until
        time.sleep(0.05)

    times = {name: (folder / f"{name}.bin").stat().st_mtime_ns for name in done}
    run(*command)
    assert {name: (folder / f"{name}.bin").stat().st_mtime_ns for name in done} == times
    assert sorted(os.listdir(folder)) == sorted(os.listdir(f"{data}/tok512"))
    for name in os.listdir(folder):
        assert read_bytes(folder / name) == read_bytes(f"{data}/tok512/{name}"), name


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        for name in ("data00.json", "../../data99.json"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    monkeypatch.setattr(tinystories, "data_dir", str(tmp_path / "data"))
    monkeypatch.setattr(tinystories, "download_from_hub", lambda *_: str(tmp_path / "bad.tar.gz"))
    for has_filter in (True, False):  # Python 3.11.3 and older have none
        if not has_filter:
            monkeypatch.delattr(tarfile, "data_filter")
        with pytest.raises(InputError, match="bad.tar.gz cannot be unpacked: .*data99.json"):
            tinystories.download()
    assert sorted(os.listdir(tmp_path)) == ["bad.tar.gz", "data"]
    assert not tinystories.story_files()  # what came before the bad name does not count either


def test_without_a_network_there_is_one_sentence_and_no_stories(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep = lambda _: None\n")
    # nothing listens at port 9; the library tries six times, and waits for 23 s in between
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "*", "PYTHONPATH": str(tmp_path)}
    _, error = run("tinystories.py", "download", f"--data_dir={tmp_path}/data", ok=False, env=env)
    beginning = "tinystories.py: could not download TinyStories_all_data.tar.gz of roneneldan/TinyStories: "
    assert error.splitlines()[-1].startswith(beginning)
    monkeypatch.setattr(tinystories, "data_dir", str(tmp_path / "data"))
    assert not tinystories.story_files()


def test_training_refuses_shards_that_lie(data, tmp_path):
    folder = tmp_path / "ids"
    shutil.copytree(f"{data}/tok512", folder)
    shutil.copy(f"{data}/tok512.model", tmp_path)
    for path in sorted(folder.glob("*.bin"))[1:]:
        ids = np.fromfile(path, "<u2")
        ids[100::64] = 777  # one in each sequence of 64
        ids.tofile(path)
    args = ["train.py", *SMALL, f"--vocab_source={folder}", f"--out_dir={tmp_path}/out", "--eval_interval=1"]
    _, error = run(*args, ok=False)
    assert re.search("train.py: \\S+: id 777 is outside the vocabulary of 512\\n", error)
    args[-2] = f"--out_dir={tmp_path}/other"
    _, error = run(*args, "--vocab_size=4096", ok=False)
    assert error.endswith(f"{folder} holds ids of a vocabulary of 512, not 4096\n")
    meta = read_json(folder / "meta.json")
    (folder / "meta.json").write_text(json.dumps(meta | {"tokenizer_fingerprint": "another"}))
    _, error = run(*args, ok=False)
    assert f"the shards in {folder} were made by another tokenizer than" in error


def test_a_prompt_longer_than_the_context_keeps_its_end(trained, capsys):
    g = TextGenerator(f"{trained}/ckpt.pt")
    ids = g.encode("One day, " * 60)
    assert len(ids) == 64 and ids == g.tokenizer.encode("One day, " * 60, bos=True)[-64:]
    assert "the last 64 are kept" in capsys.readouterr().err


def test_a_run_that_has_no_best_model_yet_is_sampled_from_its_newest_state(trained, tmp_path, capsys):
    shutil.copy(f"{trained}/last.pt", tmp_path)
    assert TextGenerator(f"{tmp_path}/ckpt.pt").sample("One day", 1, 5)[0].startswith("One day")
    assert f"no {tmp_path}/ckpt.pt yet: taking {tmp_path}/last.pt" in capsys.readouterr().err
