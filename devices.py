"""
What differs between machines: the device, which numbers it is fast at, and whether torch.compile works.
All of it is decided here, once, at the start of a script; no other file asks which device it runs on.
"""

import contextlib
import hashlib
import os

import torch
import torch.distributed as dist

from configurator import first_line

# Dense bfloat16 (V100, T4: float16) FLOP/s by a part of the device's name, from the makers' data sheets.
PEAK_BF16_FLOPS = (
    ("B200", 2250e12), ("H200", 989e12), ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12),
    ("H800", 989e12), ("A100", 312e12), ("A800", 312e12), ("L40S", 362e12), ("L4", 121e12),
    ("RTX 4090", 165e12), ("RTX 3090", 71e12), ("V100", 125e12), ("T4", 65e12),
)  # fmt: skip

# To inductor, on a CPU: products by kernels of its own, which read weights that were laid out for them, and
# products with the same input as one; kernels called from C++; no look at each token whether sizes, and the
# weights, are still the same.
CPU_STEP = {
    "max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP", "cpp.enable_concat_linear": True,
    "cpp_wrapper": True, "size_asserts": False,
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
}  # fmt: skip


def find_device(name: str) -> str:
    """'auto' -> 'cuda', 'mps' or 'cpu', whichever is there; another name is checked."""
    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return next(name for name in there if there[name])
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name} cannot be used here: {first_line(error)}") from None
    return name


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def peak_flops(device_name: str):
    """Dense bfloat16 FLOP/s of a device, None where it is not in the table."""
    return next((flops for name, flops in PEAK_BF16_FLOPS if name in device_name), None)


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


def compile_trouble(device: str) -> str:
    """Why torch.compile does not work here, as a tiny function finds out; '' where it does."""
    try:
        torch.compile(lambda x: (x * 2).sin())(torch.ones(8, device=device))
    except Exception as error:  # of whatever kind: Dynamo's, Triton's, the C++ compiler's, the system's
        return first_line(error)
    return ""


def try_compile(model, choice: str, device: str, say=print):
    """
    torch.compile(model) where `choice` is 'true', or 'auto' and it works here (CUDA with Triton, a CPU
    with a C++ compiler); otherwise the model itself, and a line that says why.
    """
    if choice == "false" or (choice == "auto" and device.startswith("mps")):
        return model
    trouble = compile_trouble(device)
    if trouble and choice == "true":
        raise ValueError(f"torch.compile does not work here: {trouble}")
    if trouble:
        say(f"not compiling: {trouble}")
    return model if trouble else torch.compile(model)


def compile_step(model, device: str):
    """
    Have model.stream() decode with a compiled step, for which the weights must not change any more.

    On CUDA the step is recorded as a graph, since launching its many small kernels one by one takes longer
    than they do. On a CPU the weights become constants of the code, packed once in the order in which a
    product of few rows reads them: MKL's products read a single row's weights at a fifth of that speed.
    """
    trouble = compile_trouble(device)
    if trouble or not hasattr(model, "compiled_step"):
        raise ValueError(f"cannot compile: {trouble or 'a model of the transformers library'}")
    if not device.startswith("cpu"):
        mode = "reduce-overhead" if device.startswith("cuda") else None
        model.compiled_step = torch.compile(model.step, dynamic=False, mode=mode)
        return
    digest = hashlib.sha256()
    for t in (*model.parameters(), *model.buffers()):  # all that becomes a constant, the tables of RoPE too
        digest.update(t.detach().contiguous().view(torch.uint8).numpy())
    tag = digest.hexdigest()
    compiled, known = torch.compile(model.step, dynamic=False, options=CPU_STEP), set()

    def step(tokens, cache, at):
        kind = (tokens.shape, cache[0][0].dtype)
        if kind in known:
            return compiled(tokens, cache, at)
        known.add(kind)
        # freezing as an option would come too late; weights that oneDNN packs cannot be cached; and torch's
        # key to the cached code, which holds the weights, does not know them: a tag that does is added.
        torch.backends.mkldnn.set_flags(False)
        try:
            with torch._inductor.config.patch(freezing=True), torch.compiler.config.patch(cache_key_tag=tag):
                return compiled(tokens, cache, at)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise ValueError(f"cannot compile: {first_line(error)}") from error
        finally:
            torch.backends.mkldnn.set_flags(True)

    model.compiled_step = step


def join_processes(device: str):
    """
    (rank, world size, device, number of restarts) of this process: alone 0, 1, `device`, 0. Under torchrun it
    joins the others, by NCCL on GPUs, of which it takes its own, or else by gloo.
    """
    if "RANK" not in os.environ:
        return 0, 1, device, 0
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    store, _, _ = next(dist.rendezvous("env://"))
    if os.environ["LOCAL_WORLD_SIZE"] == str(world_size):
        # torchrun's store remembers where the processes that died have listened: each start has its own
        # part. Of several machines not all count the same starts: see TORCH_SHARE_RDZV_TCP_STORE in train.py.
        store = dist.PrefixStore(f"start {restarts}", store)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    dist.all_gather_object(counts := [0] * world_size, restarts)
    return rank, world_size, device, max(counts)
