"""Training by several processes, of which some die."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.fixtures import ALONE, HERE, SMALL, assert_same_run, children, needs_proc, read_bytes, run

pytest_plugins = ["tests.fixtures"]

TWENTY = (
    *SMALL,
    "--batch_size=2",
    "--gradient_accumulation_steps=4",
    "--max_iters=20",
    "--eval_interval=10",
    "--save_interval=5",
    "--dropout=0.1",
)


@pytest.fixture(scope="session")
def twenty(data, tmp_path_factory):
    """output/ of 20 steps, with dropout, by one process."""
    out = str(tmp_path_factory.mktemp("twenty") / "output")
    run("train.py", *TWENTY, f"--data_dir={data}", f"--out_dir={out}", env=os.environ | ALONE)
    return out


def torchrun(processes, *args):
    """Start train.py as several processes of this machine; returns torchrun's process."""
    own = [a for a in args if a.startswith("--max_restarts")]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            *own,
            "train.py",
            *(a for a in args if a not in own),
        ],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ALONE,
    )


def ranks(parent):
    """{rank: process id} of the processes that torchrun has started."""
    environs = {pid: read_bytes(f"/proc/{pid}/environ") for pid in children(parent)}
    found = {pid: re.search(rb"(?:^|\0)RANK=(\d+)", environ) for pid, environ in environs.items()}
    return {int(rank[1]): pid for pid, rank in found.items() if rank}


def wait_for(happens, process, seconds=60):
    until = time.time() + seconds
    while not happens():
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < until, "it did not come to this"
        time.sleep(0.002)


def logged(out, step):
    """Whether the training row of a step is in the log, as the text of a file that is being written."""
    try:
        with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as f:
            return f'"step": {step}, "loss"' in f.read()
    except FileNotFoundError:
        return False


def test_four_processes_train_as_one_does(data, twenty, tmp_path):
    process = torchrun(4, *TWENTY, f"--data_dir={data}", f"--out_dir={tmp_path}/out")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert said.count("finished: 20 steps") == 1  # only the first process speaks
    assert_same_run(tmp_path / "out", twenty, 1e-5)


@needs_proc
def test_torchrun_starts_a_run_again_that_goes_on_by_itself(data, twenty, trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(os.path.join(trained, "last.pt"), out)  # an older run's, at step 40: not to be gone on from
    process = torchrun(2, "--max_restarts=3", *TWENTY, f"--data_dir={data}", f"--out_dir={out}")
    wait_for(lambda: logged(out, 1), process)
    os.kill(ranks(process.pid)[1], signal.SIGKILL)  # before anything is saved
    wait_for(lambda: not logged(out, 1), process)
    wait_for(lambda: logged(out, 7), process)
    os.kill(ranks(process.pid)[0], signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert re.findall(r"going on with step \d+", said) in (
        ["going on with step 5"],
        ["going on with step 10"],
    )
    assert_same_run(out, twenty, 1e-5)


@needs_proc
def test_a_rank_that_dies_ends_all_and_another_number_goes_on(data, twenty, tmp_path):
    out = tmp_path / "out"
    process = torchrun(2, *TWENTY, f"--data_dir={data}", f"--out_dir={out}")
    wait_for(lambda: logged(out, 6), process)
    began, pids = time.time(), ranks(process.pid)
    os.kill(pids[1], signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert time.time() - began < 60 and process.returncode != 0 and "SIGKILL" in said
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids.values())
    run("train.py", "--init_from=resume", f"--out_dir={out}", "--device=cpu", env=os.environ | ALONE)
    assert_same_run(out, twenty, 1e-5)
    got, want = (torch.load(os.path.join(o, "last.pt"), weights_only=True)["model"] for o in (out, twenty))
    assert all(torch.allclose(got[k], w, atol=1e-5) for k, w in want.items())
