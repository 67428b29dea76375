"""
Two machines train as one does: python -m tests.two_machines

By hand, on Linux as root; a minute. The machines are two network namespaces of this one, joined by a cable
(a veth pair): each sees its own network only. torchrun starts a process on each; they talk by gloo.
"""

import os
import subprocess
import sys
import tempfile

from tests.fixtures import ALONE, HERE, assert_same_run, flags, run
from tests.test_distributed import TWENTY, finish

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
    subprocess.run(command.split(), check=True)


def start(i, *args):
    """torchrun on machine i."""
    command = ["ip", "netns", "exec", f"machine{i}", sys.executable, "-m", "torch.distributed.run"]
    command += flags(nnodes=2, nproc_per_node=1, rdzv_id="two", rdzv_backend="c10d", local_addr=ADDRESSES[i])
    command += flags(rdzv_endpoint=f"{ADDRESSES[0]}:29400", rdzv_conf=f"is_host={int(i == 0)}")
    env = os.environ | ALONE | {"GLOO_SOCKET_IFNAME": f"cable{i}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "train.py", *args], cwd=HERE, env=env, **pipes)


def main():
    with tempfile.TemporaryDirectory() as folder:
        data, one, two = (os.path.join(folder, name) for name in ("data", "one", "two"))
        run("tinystories.py", "synthesize", f"--data_dir={data}", "--megabytes=2")
        run("tinystories.py", "pretokenize", f"--data_dir={data}", "--vocab_size=512")
        args = [*TWENTY, f"--data_dir={data}"]
        run("train.py", *args, f"--out_dir={one}")
        machines = [start(i, *args, f"--out_dir={two}") for i in range(2)]
        for machine in machines:
            finish(machine)
        assert_same_run(two, one, 1e-5)
        print("two machines have the losses of one process")


if __name__ == "__main__":
    try:
        lay_cable()
        main()
    finally:
        for i in range(2):
            subprocess.run(["ip", "netns", "delete", f"machine{i}"])  # the cable goes with it
