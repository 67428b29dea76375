"""Training by several processes on one machine, by torchrun. Reads the shards of the fixture `data`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import devices
from tests.fixtures import ALONE, HERE, SMALL, assert_same_run, flags, run

pytest_plugins = ["tests.fixtures"]

TWENTY = SMALL + flags(
    batch_size=2, gradient_accumulation_steps=4, max_iters=20, eval_interval=10, save_interval=5, dropout=0.1
)


@pytest.fixture(scope="session")
def twenty(data, tmp_path_factory):
    """output/ of 20 steps, with dropout, by one process."""
    out = str(tmp_path_factory.mktemp("twenty") / "output")
    run("train.py", *TWENTY, f"--data_dir={data}", f"--out_dir={out}", env=os.environ | ALONE)
    return out


def torchrun(processes, *args):
    """Start train.py as several processes of this machine; returns torchrun's process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "train.py", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=HERE, env=os.environ | ALONE, **pipes)


def finish(process):
    """Wait for torchrun; returns what the processes printed."""
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    return printed


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one_does(data, twenty, tmp_path, processes):
    printed = finish(torchrun(processes, *TWENTY, f"--data_dir={data}", f"--out_dir={tmp_path}"))
    assert printed.count("finished: 20 steps") == 1  # only the first process prints
    assert_same_run(tmp_path, twenty, 1e-5)


@pytest.mark.skipif(not shutil.which("pkill"), reason="kills one of torchrun's processes by pkill")
def test_a_rank_that_dies_ends_all_and_two_processes_resume_what_four_began(data, twenty, tmp_path):
    process = torchrun(4, *TWENTY, f"--data_dir={data}", f"--out_dir={tmp_path}")
    log = tmp_path / "log.jsonl"
    while not (log.exists() and '"step": 6, "loss"' in log.read_text()):  # last.pt is of step 5
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    subprocess.run(["pkill", "-KILL", "-n", "-P", str(process.pid)], check=True)  # the newest: rank 3
    assert "SIGKILL" in process.communicate(timeout=60)[0]  # all have ended: each has the pipe
    assert process.returncode != 0
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iter_num"] < 20

    finish(torchrun(2, "--init_from=resume", f"--out_dir={tmp_path}", "--device=cpu"))
    assert_same_run(tmp_path, twenty, 1e-5)


def test_ctrl_c_under_torchrun_saves_between_two_logged_steps(data, tmp_path):
    options = flags(data_dir=data, out_dir=tmp_path, max_iters=10**6, log_interval=10**6, eval_interval=10**6)
    process = torchrun(2, *TWENTY, *options)
    while not (tmp_path / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    time.sleep(2)
    began = time.time()
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    steps = int(re.search(r"stopped after (\d+) steps; to resume: python train.py", printed)[1])
    assert time.time() - began < 20  # torchrun kills after 30 s
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iter_num"] == steps


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, name):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(devices, "find_device", lambda name: "cuda" if name == "auto" else name)
    monkeypatch.setattr(devices.dist, "init_process_group", taken.append)
    monkeypatch.setattr(devices.dist, "get_rank", lambda: 5)
    monkeypatch.setattr(devices.dist, "get_world_size", lambda: 8)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.init_distributed(name) == (5, 8, "cuda:1") and taken == ["cuda:1", "nccl"]
