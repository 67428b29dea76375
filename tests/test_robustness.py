"""What must not harm a run or its files: broken numbers, full disks, kills, hostile or damaged files."""

import io
import itertools
import math
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch

import devices
import tinystories
from configurator import InputError, read_json
from model import load_checkpoint
from sample import TextGenerator
from tokenizer import Tokenizer

# isort: off
from tests.fixtures import (
    HERE, SMALL, flags, random_checkpoint, read_bytes, read_rows, run, run_here, write_ids,
)  # fmt: skip

pytest_plugins = ["tests.fixtures"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("hit",)  # what is called where it is unpickled


def test_a_checkpoint_cannot_run_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):  # the two formats of torch.save
        saved = {"model": {}, "model_args": {}, "config": Bomb()}
        torch.save(saved, "bomb.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(pickle.UnpicklingError):
            load_checkpoint("bomb.pt")
    assert os.listdir() == ["bomb.pt"]


@pytest.mark.parametrize("value, expected, names", [
    ("0", "a whole number, at least 1", "eval_interval log_interval save_interval eval_iters max_seq_len "
     "max_iters gradient_accumulation_steps dim n_layers n_heads multiple_of"),
    ("65537", "a whole number, at least 1, at most 65536", "batch_size"),
    ("1.0", "a number, at least 0, below 1", "dropout beta1 beta2"),
    ("1e39", "a number, at least 0, below 1e9", "learning_rate weight_decay"),
    ("-1", "a whole number, at least 0, below 4e9", "seed"),
])  # fmt: skip
def test_numbers_are_refused_with_which_nothing_can_be_done(tmp_path, capsys, value, expected, names):
    for name in names.split():
        with pytest.raises(AssertionError):  # exit code 2
            run_here("train.py", f"--out_dir={tmp_path}/out", f"--{name}={value}")
        assert f"argument --{name}: expects {expected}, not '{value}'" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_steps_without_finite_gradients_end_a_run(data, tmp_path, monkeypatch, capsys, optimizer):
    steps = itertools.count()
    clip = torch.nn.utils.clip_grad_norm_

    def spoil_and_clip(parameters, max_norm):
        parameters = list(parameters)
        if next(steps) in (2, 6, 7, 8):
            parameters[0].grad.fill_(math.nan)
        return clip(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil_and_clip)
    options = flags(data_dir=data, out_dir=tmp_path / "out", save_interval=1, optimizer=optimizer)
    with pytest.raises(InputError, match="stopped: 3 steps in a row had gradients that are not finite"):
        run_here("train.py", *SMALL, *options, "--max_iters=20")
    printed = capsys.readouterr().out
    assert re.findall(r"step (\d+): loss [\d.]+, gradient norm nan: skipped", printed) == ["2", "6", "7", "8"]
    rows = [row for row in read_rows(tmp_path / "out" / "log.jsonl") if "loss" in row]
    assert [row["step"] for row in rows if row["grad_norm"] is None] == [2, 6, 7, 8]
    last = load_checkpoint(tmp_path / "out" / "last.pt")
    assert last["iter_num"] == 8 and all(weight.isfinite().all() for weight in last["model"].values())
    assert last["optimizer"]["state"][0]["step"] == 5  # steps that changed the weights: 0, 1, 3, 4, 5


@pytest.mark.parametrize("saved", ["last.pt", "ckpt.pt", ""])
@pytest.mark.parametrize("mode, names", [("synthetic", "output"), ("chat", "output_chat output_chat_sft")])
def test_the_quick_start_resumes_a_training_that_was_interrupted(tmp_path, mode, names, saved):
    """Its commands only: a virtual environment whose python writes down what it is asked."""
    folders = names.split()
    for name in ("quickstart.sh", "requirements.txt"):
        shutil.copy(os.path.join(HERE, name), tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("complete")
    (programs / "python").write_text('#!/bin/sh\necho "$@" >> asked\n')  # of the device it says nothing
    (programs / "python").chmod(0o755)
    for folder in folders if saved else ():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / saved).touch()
    subprocess.run(["bash", tmp_path / "quickstart.sh", mode], check=True)
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    trainings = [words for words in asked if words[0] == "train.py"]
    assert [words[1] for words in trainings] == [f"--out_dir={folder}" for folder in folders]
    for words in trainings:
        assert ("--init_from=resume" in words) == bool(saved) == (len(words) == 3)
    assert ["sample.py", f"--checkpoint={folders[-1]}/ckpt.pt"] in [words[:2] for words in asked]


# --- runs that are interrupted, and runs that meet


def start_training(*args, before=(), **kwargs):
    command = [*before, "env", "PYTHONUNBUFFERED=", sys.executable, os.path.join(HERE, "train.py"), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def test_a_save_that_fails_half_way_leaves_the_older_file(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    paths = [tmp_path / "out" / name for name in ("last.pt", "ckpt.pt")]
    before = [read_bytes(path) for path in paths]
    limit = len(before[0]) // 2  # bytes in a file, as if the disk were full then
    process = start_training(
        *flags(init_from="resume", out_dir=tmp_path / "out", max_iters=43, eval_interval=100),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    said = process.communicate()[0]
    assert process.returncode == 1 and "File too large" in said and "Traceback" not in said
    assert [read_bytes(path) for path in paths] == before and not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("before", [[], ["nohup"]], ids=["", "nohup"])
def test_a_closed_terminal_ends_a_run_that_resumes_and_nohup_does_not(data, tmp_path, before):
    options = flags(data_dir=data, out_dir=tmp_path / "out", max_iters=150 if before else 10**6)
    process = start_training(*SMALL, *options, before=before)
    while not (tmp_path / "out" / "log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    if not before:
        process.stdout.close()  # as with a terminal, no output arrives any more
    for _ in range(40):  # the shell and the system both tell
        process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    assert process.wait(timeout=60) == 0
    steps = load_checkpoint(tmp_path / "out" / "last.pt")["iter_num"]
    assert steps == 150 if before else 0 < steps < 10**6


@pytest.mark.parametrize("init_from", ["scratch", "resume"])
def test_of_two_runs_in_one_folder_one_is_refused(data, trained, tmp_path, init_from):
    out = tmp_path / "out"
    if init_from == "resume":
        shutil.copytree(trained, out)
    options = flags(data_dir=data, out_dir=out, init_from=init_from, max_iters=200, eval_interval=100)
    both = [start_training(*SMALL, *options) for _ in range(2)]
    said = sorted((process.communicate()[0], process.returncode) for process in both)
    (finished,), (refused,) = ([text for text, code in said if code == want] for want in (0, 1))
    assert "finished: 200 steps" in finished
    assert re.search("train.py: .*out holds a|another run writes to .*out: let it end", refused)
    assert [row["step"] for row in read_rows(out / "log.jsonl") if "loss" in row] == [*range(200)]


def test_a_resume_on_other_data_begins_the_best_again(trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "out")
    noise = np.random.default_rng(0).integers(512, size=(2, 5000))
    shards = {"data00": noise[0], "data01": noise[1]}
    write_ids(tmp_path / "noise", shards)
    options = flags(init_from="resume", out_dir=out, vocab_source=tmp_path / "noise", device="cpu")
    said = "holds other data than at the last save: the best validation loss begins again"
    old_best = load_checkpoint(out / "last.pt")["best_val_loss"]
    run_here("train.py", *options, "--eval_interval=2", "--max_iters=44")
    assert said in capsys.readouterr().out
    losses = [row["val_loss"] for row in read_rows(out / "log.jsonl") if "val_loss" in row]
    best = load_checkpoint(out / "ckpt.pt")
    assert best["best_val_loss"] == min(losses[-3:]) > old_best and best["iter_num"] >= 40
    run_here("train.py", *options, "--max_iters=46")  # that folder again: nothing has changed
    assert said not in capsys.readouterr().out
    write_ids(tmp_path / "noise", shards, tokenizer_fingerprint="another")
    with pytest.raises(InputError, match="noise were made by another tokenizer than"):
        run_here("train.py", *options, "--max_iters=48")


def test_auto_takes_no_gpu_that_cannot_compute(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "device_error", lambda name: {"cuda": "no kernel image"}.get(name, ""))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.find_device("auto") == "cpu"
    assert capsys.readouterr().err == "not using cuda: no kernel image\n"
    with pytest.raises(InputError, match="--device=cuda cannot be used here: no kernel image"):
        devices.find_device("cuda")


@pytest.mark.parametrize("has, onednn, fast", [
    ({"avx512_bf16": True}, True, True), ({"amx_tile": True}, True, True), ({"avx512_f": True}, True, False),
    ({"bf16": True}, True, True), ({"bf16": True}, False, False), ({"neon": True}, True, False),  # ARM's
])  # fmt: skip
def test_cpus_with_bfloat16(monkeypatch, has, onednn, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert devices.find_dtype("bfloat16", "cpu") == ("bfloat16" if fast else "float32")


# --- other programs' checkpoints


def test_the_weights_of_llama2cs_checkpoint_begin_a_run_and_it_is_no_run(data, tmp_path):
    path, out = tmp_path / "ckpt.pt", tmp_path / "out"
    random_checkpoint(path, vocab_size=512)
    llama2c = load_checkpoint(path) | {"config": {"dim": 48}, "optimizer": {}, "iter_num": 7}
    torch.save(llama2c, path)
    options = [*SMALL, *flags(data_dir=data, max_iters=2)]
    with pytest.raises(InputError, match=f"{path} holds no run: --init_from={path} starts from its"):
        run_here("train.py", *options, f"--out_dir={tmp_path}", "--init_from=resume")
    assert os.listdir(tmp_path) == ["ckpt.pt"]
    run_here("train.py", *options, *flags(init_from=path, out_dir=out, learning_rate=0))
    trained = load_checkpoint(out / "last.pt")["model"]
    assert all(torch.equal(trained[key], weight) for key, weight in llama2c["model"].items())
    llama2c["model"]["norm.weight"][0] = math.inf
    torch.save(llama2c, path)
    with pytest.raises(InputError, match="ckpt.pt holds weights that are not finite"):
        TextGenerator(str(path), f"{data}/tok512.model")


def test_an_id_without_a_piece_is_never_written(data, tmp_path, capsys):
    tok = Tokenizer(f"{data}/tok512.model")
    path = random_checkpoint(tmp_path / "padded.pt", tok.state(), vocab_size=640)
    options = flags(data_dir=data, out_dir=tmp_path / "out", init_from=path, max_iters=2, eval_interval=1)
    run_here("train.py", *SMALL, *options, "--max_seq_len=120", "--learning_rate=0")
    assert "finished: 2 steps" in capsys.readouterr().out
    new = list(TextGenerator(path).stream([1], 64, 20, temperature=50.0, top_k=0))
    assert max(map(max, new)) < tok.n_words


# --- data


def test_shards_of_a_run_that_was_killed_are_resumed_and_are_the_same(data, tmp_path):
    os.symlink(f"{data}/TinyStories_all_data", tmp_path / "TinyStories_all_data")
    shutil.copy(f"{data}/tok512.model", tmp_path)
    folder = tmp_path / "tok512"
    command = ["tinystories.py", "pretokenize", f"--data_dir={tmp_path}", "--vocab_size=512"]
    process = subprocess.Popen([sys.executable, *command, "--workers=2"], cwd=HERE, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(folder.glob("*.bin"))) < 5:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=20)  # its workers have the pipe, too: they end with it
    done = read_json(folder / "meta.json")["shards"]
    assert 0 < len(done) < 50
    with pytest.raises(InputError, match="no finished shards"):
        tinystories.read_meta(str(folder))
    times = {name: (folder / f"{name}.bin").stat().st_mtime_ns for name in done}
    run(*command)
    assert {name: (folder / f"{name}.bin").stat().st_mtime_ns for name in done} == times
    for name in {*os.listdir(folder), *os.listdir(f"{data}/tok512")}:
        assert read_bytes(folder / name) == read_bytes(f"{data}/tok512/{name}"), name


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / "TinyStories_all_data.tar.gz"  # as if it had been downloaded
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("data00.json", "../../data99.json"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    monkeypatch.setattr(tinystories, "data_dir", str(tmp_path / "data"))
    with pytest.raises(InputError, match="data.tar.gz cannot be unpacked: .*data99.json"):
        tinystories.download()
    assert os.listdir(tmp_path) == ["data"]
    assert not tinystories.story_files()  # what came before the bad name does not count either


def test_sampling_takes_the_newest_state_and_the_end_of_a_long_prompt(trained, tmp_path, capsys):
    shutil.copy(f"{trained}/last.pt", tmp_path)
    generator = TextGenerator(f"{tmp_path}/ckpt.pt")
    assert f"no {tmp_path}/ckpt.pt yet: taking {tmp_path}/last.pt" in capsys.readouterr().err
    ids = generator.encode("One day, " * 60)
    assert len(ids) == 64 and ids == generator.tokenizer.encode("One day, " * 60, bos=True)[-64:]
    assert "the last 64 are kept" in capsys.readouterr().err
