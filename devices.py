"""What differs between machines: device, dtype, compiling, processes, locks. Scripts ask at their start."""

import contextlib
import functools
import os
import re
import sys

import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import InputError, first_sentence

# FLOP/s of dense products in bfloat16 (T4: float16), by the makers, by words of the name; the first counts.
PEAK_FLOPS = {
    "B200": 2250e12, "H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H100": 989e12, "H800 PCIe": 756e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12,
    "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "T4": 65e12,
}  # fmt: skip


def find_device(name: str) -> str:
    """'auto' -> 'cuda', 'mps' or 'cpu', the first that works; another name is checked. InputError."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for candidate in filter(there.get, there) if name == "auto" else [name]:
        error = device_error(candidate)
        if not error:
            return candidate
        if name != "auto":
            raise InputError(f"--device={name} cannot be used here: {error}")
        print(f"not using {candidate}: {error}", file=sys.stderr)
    return "cpu"


def device_error(name: str) -> str:
    """Why a device cannot compute, '' if it can. A GPU that torch has no kernels for is "available", too."""
    try:
        (torch.ones(1, device=name) + 1).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return first_sentence(error)
    return ""


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def peak_flops(device_name: str, dtype="bfloat16"):
    """FLOP/s of a device in a dtype of 16 bits, or None where it is unknown."""
    if dtype == "float32" or re.search(r"\b(Laptop|Max-Q|D|Ti|SUPER|MIG)\b", device_name):  # a smaller chip
        return None
    return next((f for words, f in PEAK_FLOPS.items() if re.search(rf"\b{words}\b", device_name)), None)


def find_dtype(name: str, device: str) -> str:
    """The dtype asked for, or one in which this device is faster. All are right; they differ in speed."""
    device_type = device.split(":")[0]
    if device_type == "cuda" and name == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
        return "float16"  # a T4 only emulates bfloat16
    if device_type == "cpu" and (name == "float16" or (name == "bfloat16" and not cpu_has_bf16())):
        return "float32"
    return name


def cpu_has_bf16() -> bool:
    """Whether bfloat16 products are fast: without such instructions float32's are several times faster."""
    has = torch.cpu.get_capabilities().get
    arm = has("bf16") and torch.backends.mkldnn.is_available()  # Graviton 3, Grace; it is oneDNN that uses it
    return bool(has("avx512_bf16") or has("amx_tile") or arm)


def autocast(device: str, dtype: str):
    """The context in which forward runs: matrix products in `dtype`, sums and the loss in float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], getattr(torch, dtype))


def compile_error(device: str) -> str:
    """Why torch.compile does not work here, found out with a tiny function; '' where it works."""
    try:
        torch.compile(lambda x: (x * 2).sin())(torch.ones(8, device=device))
    except Exception as error:  # Dynamo's, Triton's, the C++ compiler's, the system's
        return first_sentence(error)
    return ""


def try_compile(model, choice: str, device: str):
    """
    torch.compile(model) for the choice 'true', and for 'auto' where that works: on CUDA with Triton, on a CPU
    with a C++ compiler. Otherwise the model itself, and a line says why.
    """
    if choice == "false" or (choice == "auto" and device.startswith("mps")):
        return model
    error = compile_error(device)
    if error and choice == "true":
        raise InputError(f"torch.compile does not work here: {error}")
    print0(f"not compiling: {error}" if error else "compiling: the first step takes up to two minutes")
    return model if error else torch.compile(model)


def init_distributed(device: str):
    """(rank, world size, device) of this process: 0 of 1, or by torchrun one of many, on a GPU of its own."""
    if "RANK" not in os.environ:
        return 0, 1, find_device(device)
    if device in ("auto", "cuda", "cuda:0") and torch.cuda.is_available():  # cuda:0 is the tutorial's
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    device = find_device(device)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


@functools.cache  # a process asks as often as it likes
def hold_folder(folder):
    """Keep a folder for this process until it ends, in whatever way. InputError where another has it."""
    os.makedirs(folder, exist_ok=True)
    try:
        import fcntl

        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another run writes to {folder}: let it end, or give another --out_dir") from None
    except (ImportError, OSError):  # Windows and some network disks have no such locks
        pass


def print0(text):
    """Print a line above the progress bar, if this is the first of the processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        try:
            tqdm.write(text)
            sys.stdout.flush()
        except OSError:  # a closed terminal, or a pipe that nobody reads, is no error: the rest goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
