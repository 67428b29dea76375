"""
A CUDA device that computes nothing, for a CPU build of torch: it shows where Python waits for a GPU.

    python tests/fake_cuda.py train.py --device=cuda --compile=false ...      a script and its options
    CAPABILITY=7.5 python tests/fake_cuda.py ...                              a T4

Tensors have sizes, dtypes and devices, but no numbers (torch's FakeTensorMode): a mix of devices is an error.
Reading a number or a blocking copy waits for the device; each is printed at the end, with the script's step,
the functions of the project that it was in, and how often. It needs g++: for FakeTensorMode alone, autograd
and random numbers want a CUDA that exists. They get one that does nothing.
"""

import collections
import ctypes
import importlib.util
import os
import runpy
import subprocess
import sys
import tempfile
from unittest import mock

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEVICE = """
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
struct Guard : impl::NoOpDeviceGuardImpl<kCUDA> {
  Device exchangeDevice(Device) const override { return getDevice(); }
  Device getDevice() const override { return Device(kCUDA, 0); }
  Stream getStream(Device device) const noexcept override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
};
static impl::DeviceGuardImplRegistrar guard(kCUDA, new Guard());
namespace at {
struct Hooks : CUDAHooksInterface {
  explicit Hooks(CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  Generator getNewGenerator(DeviceIndex) const override { return detail::createCPUGenerator(); }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks)
}
"""
lib = os.path.join(os.path.dirname(importlib.util.find_spec("torch").origin), "lib")
with tempfile.TemporaryDirectory() as folder:
    with open(f"{folder}/device.cpp", "w") as f:
        f.write(DEVICE)
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"{folder}/device.cpp", "-o", f"{folder}/device.so"]
    command += ["-I", f"{lib}/../include", "-L", lib, f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    ctypes.CDLL(f"{folder}/device.so")  # it registers itself, where torch looks when it is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

waits = collections.Counter()


def note(what):
    """Count a wait: the script's step, what waits, and the functions of the project that it is in."""
    functions = []
    frame = script = sys._getframe(1)
    while frame := frame.f_back:
        path = frame.f_code.co_filename
        if path.startswith(HERE) and path != __file__:
            functions.append(frame.f_code.co_name.strip("<>"))
            script = frame
    waits[script.f_globals.get("step"), what, ".".join(reversed(functions))] += 1


def made_up(x):
    return False if x.dtype == torch.bool else 0.0 if x.is_floating_point() else 5


class Watch(TorchDispatchMode):
    """Notes waits, and makes up the numbers that are read."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        aten = torch.ops.aten
        if func in (aten._local_scalar_dense.default, aten.equal.default):
            if args[0].is_cuda:
                note("number")
            return func is aten.equal.default or made_up(args[0])
        if func is aten.exponential_.default:
            kwargs.pop("generator")  # fake tensors know none
        out = func(*args, **kwargs)
        tensors = [x for x in torch.utils._pytree.arg_tree_leaves(*args, out) if isinstance(x, torch.Tensor)]
        blocking = not kwargs.get("non_blocking") and args[-1] is not True
        is_copy = func in (aten._to_copy.default, aten.copy_.default)
        if len({x.device for x in tensors if x.dim() or is_copy}) > 1 and (blocking or not is_copy):
            note(f"copy by {func}")
        return out


def tolist(x):
    if x.is_cuda:
        note("number")  # one copy of all
    return np.full(x.shape, made_up(x)).tolist()


def to(module, device):
    """Module.to, which cannot replace fake tensors; what two modules share stays shared."""
    moved = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, x in tensors.items():
                if x is not None:
                    new = x.detach().to(device).requires_grad_(x.requires_grad)
                    tensors[name] = moved.setdefault(x, new)
    return module


def run_fake(script, *options):
    """Run a script on the device; what it cannot do is replaced. Prints the waits."""
    capability = tuple(map(int, os.environ.get("CAPABILITY", "9.0").split(".")))
    sys.argv = [script, *options]
    sys.path.insert(0, HERE)
    with mock.patch.object(torch, "inference_mode", torch.no_grad):  # the former refuses fake tensors
        import model  # noqa: F401
    with (
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_: True),
        mock.patch.object(torch.cuda, "get_device_name", lambda *_: "no device"),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: capability),
        mock.patch.object(FakeTensorMode, "avoid_device_init", True),
        mock.patch.object(torch.nn.Module, "to", to),
        mock.patch.object(torch.Tensor, "pin_memory", lambda x: x),
        mock.patch.object(FakeTensor, "tolist", tolist),
        mock.patch.object(torch, "save", lambda state, file: file.write(b"-")),
        Watch(),
    ):
        runpy.run_path(os.path.join(HERE, script), run_name="__main__")
    for (step, what, functions), times in waits.items():
        print(f"WAIT {step} {functions} {times} {what}")


if __name__ == "__main__":
    run_fake(*sys.argv[1:])
