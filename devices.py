"""
What differs between machines: the device, the dtype that it is fast at, whether torch.compile works, and the
processes that train together. The scripts ask here once, at their start.
"""

import contextlib
import os
import re

import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import InputError, first_line

# FLOP/s of dense matrix products in bfloat16 (T4: float16), from the makers' data sheets, by words of
# the device's name; the first that matches counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
}


def find_device(name: str) -> str:
    """'auto' -> 'cuda', 'mps' or 'cpu', the first that is there; another name is checked. InputError."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device={name} cannot be used here: {first_line(error)}") from None
    return name


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def peak_flops(device_name: str):
    """FLOP/s of a device in bfloat16, or None where it is unknown."""
    for words, flops in PEAK_FLOPS.items():
        if re.search(rf"\b{words}\b", device_name):  # whole words: an "L40" is no L4
            return flops
    return None


def find_dtype(name: str, device: str) -> str:
    """The dtype asked for, or one in which this device is faster. All are right; they differ in speed."""
    device_type = device.split(":")[0]
    if device_type == "cuda" and name == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
        return "float16"  # a T4 only emulates bfloat16
    if device_type == "cpu" and (name == "float16" or (name == "bfloat16" and not cpu_has_bf16())):
        return "float32"
    return name


def cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX: without them, bfloat16 products are several times slower than float32 ones."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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
        return first_line(error)
    return ""


def try_compile(model, choice: str, device: str):
    """
    torch.compile(model) for the choice 'true', and for 'auto' where that works and pays: on CUDA with Triton,
    on a CPU with bfloat16 arithmetic and a C++ compiler. On a CPU without, products in float32 take nearly
    all the time, and compiling gains nothing. Otherwise the model itself, and print0 says why. InputError
    where 'true' cannot be had.
    """
    if choice == "false" or (choice == "auto" and device.startswith("mps")):
        return model
    if choice == "auto" and device.startswith("cpu") and not cpu_has_bf16():
        print0("not compiling: on a CPU without bfloat16 arithmetic it gains nothing")
        return model
    error = compile_error(device)
    if error and choice == "true":
        raise InputError(f"torch.compile does not work here: {error}")
    if error:
        print0(f"not compiling: {error}")
        return model
    return torch.compile(model)


def init_distributed(device: str):
    """
    (rank, world size, device) of this process. Started by torchrun it joins the others, by NCCL on GPUs, of
    which it takes its own, and by gloo on CPUs; otherwise it is 0 of 1.
    """
    device = find_device(device)
    if "RANK" not in os.environ:
        return 0, 1, device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def print0(text):
    """Print a line, above the progress bar; of several processes only the first prints."""
    if int(os.environ.get("RANK", 0)) == 0:
        tqdm.write(text)
