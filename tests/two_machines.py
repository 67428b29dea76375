"""
Two machines train as one does, and one that dies ends the other: python -m tests.two_machines

By hand, on Linux as root; a minute. The machines are two network namespaces of this one, joined by a cable
(a veth pair): each sees its own network only. torchrun starts a process on each; they talk by gloo.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import torch

from tests.fixtures import ALONE, HERE, assert_same_run, flags, run
from tests.test_distributed import TWENTY

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def lay_cable():
    sh("ip link add cable0 type veth peer name cable1")
    for i, address in enumerate(ADDRESSES):
        sh(f"ip netns add machine{i}")
        sh(f"ip link set cable{i} netns machine{i}")
        sh(f"ip -n machine{i} address add {address}/24 dev cable{i}")
        sh(f"ip -n machine{i} link set cable{i} up")
        sh(f"ip -n machine{i} link set lo up")


def sh(command):
    return subprocess.run(command.split(), check=True, stdout=subprocess.PIPE, text=True).stdout


def start(i, *args):
    """torchrun on machine i."""
    command = ["ip", "netns", "exec", f"machine{i}", sys.executable, "-m", "torch.distributed.run"]
    command += flags(nnodes=2, nproc_per_node=1, rdzv_id="two", rdzv_backend="c10d", local_addr=ADDRESSES[i])
    command += flags(rdzv_endpoint=f"{ADDRESSES[0]}:29400", rdzv_conf=f"is_host={int(i == 0)}")
    env = os.environ | ALONE | {"GLOO_SOCKET_IFNAME": f"cable{i}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "train.py", *args], cwd=HERE, env=env, **pipes)


def train(*args):
    """Train on both machines to the end."""
    machines = [start(i, *args) for i in range(2)]
    for machine in machines:
        printed = machine.communicate(timeout=300)[0]
        assert machine.returncode == 0, printed


def main():
    with tempfile.TemporaryDirectory() as folder:
        data, one, two, killed = (os.path.join(folder, name) for name in ("data", "one", "two", "killed"))
        run("tinystories.py", "synthesize", f"--data_dir={data}", "--megabytes=2")
        run("tinystories.py", "pretokenize", f"--data_dir={data}", "--vocab_size=512")
        args = [*TWENTY, f"--data_dir={data}"]
        run("train.py", *args, f"--out_dir={one}")
        train(*args, f"--out_dir={two}")
        assert_same_run(two, one, 1e-5)
        print("two machines have the losses of one process")

        machines = [start(i, *args, f"--out_dir={killed}") for i in range(2)]
        log = pathlib.Path(killed, "log.jsonl")
        while not (log.exists() and '"step": 6, "loss"' in log.read_text()):
            assert machines[0].poll() is None, machines[0].communicate()[0]
            time.sleep(0.002)
        for pid in sh("ip netns pids machine1").split():
            os.kill(int(pid), signal.SIGKILL)
        began = time.time()
        printed = machines[0].communicate(timeout=120)[0]
        assert machines[0].returncode != 0
        last_words = [line for line in printed.splitlines() if ADDRESSES[1] in line][-1]  # of the lost one
        print(f"{time.time() - began:.0f} s after a machine was killed, the other ended: {last_words}")
        assert torch.load(f"{killed}/last.pt", weights_only=True)["iter_num"] in (5, 10, 15)
        train("--init_from=resume", f"--out_dir={killed}", "--device=cpu")
        assert_same_run(killed, one, 1e-5)
        print("what it had saved was resumed on both")


if __name__ == "__main__":
    try:
        lay_cable()
        main()
    finally:
        for i in range(2):
            subprocess.run(["ip", "netns", "delete", f"machine{i}"])  # the cable goes with it
