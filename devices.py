"""
What differs between machines: the device, which numbers it is fast at, and whether torch.compile works.
All of it is decided here, once, at the start of a script; no other file asks which device it runs on.
"""

import contextlib

import torch


def find_device(name: str) -> str:
    """'auto' -> 'cuda', 'mps' or 'cpu', whichever is there; another name is checked."""
    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return next(name for name in there if there[name])
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def find_dtype(name: str, device: str) -> str:
    """The dtype asked for, or float32 where the device has no fast arithmetic for it."""
    kind = device.split(":")[0]
    if kind == "cuda" and name == "bfloat16":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        fast = name == "float32" or (name == "bfloat16" and cpu_has_bf16())
    else:
        fast = True
    return name if fast else "float32"


def cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX: without them, bfloat16 products are several times slower than float32 ones."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: str, dtype: str):
    """The context in which forward runs: matrix products in `dtype`, sums and the loss in float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], getattr(torch, dtype))


def try_compile(model, choice: str, device: str, say=print):
    """
    torch.compile(model) where `choice` is 'true', or 'auto' and it works here (CUDA with Triton, a CPU
    with a C++ compiler), which a tiny function finds out; otherwise the model itself, and a line that
    says why.
    """
    if choice == "false" or (choice == "auto" and device.startswith("mps")):
        return model
    try:
        torch.compile(lambda x: (x * 2).sin())(torch.ones(8, device=device))
    except (
        Exception
    ) as error:  # of whatever kind: of Dynamo, Triton, the C++ compiler, the operating system
        if choice == "true":
            raise ValueError(
                f"torch.compile does not work here: {str(error).strip().splitlines()[0]}"
            ) from None
        say(f"not compiling: {str(error).strip().splitlines()[0][:150]}")
        return model
    return torch.compile(model)
