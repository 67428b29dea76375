"""
What must hold on a GPU, as a list of facts. Where a fact has a meaning on a CPU, it is checked there, too:
then everything but the device is the same.
"""

import functools
import gc
import shutil

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

import devices
from extras import fast_decode
from extras.memory import memory
from model import ModelArgs, Transformer

from tests.fixtures import (  # isort: skip
    SMALL, assert_same_run, chat_rows, flags, losses_of, read_rows, run_here, small_model, write_ids,
)
from tests.test_distributed import finish, torchrun

pytest_plugins = ["tests.fixtures"]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
on_cuda = pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_cuda)])
BACKEND = {"cpu": "aot_eager", "cuda": "inductor"}  # whose code for bfloat16 takes a CPU minutes to compile


@pytest.fixture(autouse=True)
def empty_device():
    """Nothing is left on the device of what another test has compiled or trained."""
    yield
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def half(device):
    """The 16-bit dtype that this device is fast at; on a CPU bfloat16, fast or not."""
    return devices.find_dtype("bfloat16", device) if device == "cuda" else "bfloat16"


# --- losses

@on_both
def test_compiled_training_in_16_bits_has_the_losses_of_eager_float32(device):
    torch.set_float32_matmul_precision("highest")
    want = losses_of(device, "float32", None)
    got = losses_of(device, half(device), BACKEND[device])
    assert want[-1] < want[0] - 0.5
    assert got == pytest.approx(want, rel=0.03)
    assert got != want  # it did compute in 16 bits


# --- train.py

def options_for(device, data, out, **changes):
    """Options of train.py for a small run on the device, in 16 bits and compiled where that is quick."""
    usual = {"device": device, "dtype": "float32", "compile": "false"}
    if device == "cuda":
        usual |= {"dtype": "bfloat16", "compile": "auto"}
    return SMALL + flags(data_dir=data, out_dir=out, **usual | changes)


@on_both
def test_a_run_that_resumes_has_the_losses_of_one_that_never_stopped(device, data, tmp_path):
    usual = {"decay_lr": False, "eval_interval": 10, "save_interval": 10}
    run_here("train.py", *options_for(device, data, tmp_path / "whole", max_iters=20, **usual))
    run_here("train.py", *options_for(device, data, tmp_path / "half", max_iters=10, **usual))
    run_here("train.py", *flags(init_from="resume", out_dir=tmp_path / "half", max_iters=20, device=device))
    assert_same_run(tmp_path / "half", tmp_path / "whole", 5e-3 if device == "cuda" else 0)


@pytest.mark.parametrize("capability, dtype", [((7, 5), "float16"), ((8, 0), "bfloat16")])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float16(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.find_dtype("bfloat16", "cuda:1") == dtype
    assert devices.find_dtype("float32", "cuda:1") == "float32"


def train_in_float16(device, data, out, monkeypatch, scale, steps):
    """train.py's globals after a run in float16 whose scaler begins with `scale`."""
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(GradScaler, init_scale=scale))
    monkeypatch.setattr(devices, "find_dtype", lambda name, device: name)  # a CPU would take float32
    length = {"max_iters": steps, "eval_iters": 1, "max_seq_len": 16}
    args = options_for(device, data, out, dtype="float16", compile="false", **length)
    return run_here("train.py", *args)


@on_both
def test_float16_skips_a_step_whose_gradients_overflow(device, data, tmp_path, monkeypatch):
    scope = train_in_float16(device, data, tmp_path / "high", monkeypatch, 2.0**40, steps=3)
    assert scope["scaler"].get_scale() == 2.0**37
    torch.manual_seed(scope["seed"])
    begun = Transformer(scope["raw_model"].args).state_dict()
    ended = scope["raw_model"].state_dict()
    assert all(torch.equal(ended[name].cpu(), weight) for name, weight in begun.items())

    scope = train_in_float16(device, data, tmp_path / "low", monkeypatch, 2.0**26, steps=24)
    steps = [row for row in read_rows(tmp_path / "low" / "log.jsonl") if "loss" in row]
    overflowed = [row["grad_norm"] is None for row in steps]
    assert overflowed[0] and scope["scaler"].get_scale() == 2.0 ** (26 - sum(overflowed))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3  # once the scale fits, it learns


@on_both
def test_a_run_in_float32_resumes_in_float16(device, trained, data, tmp_path, monkeypatch):
    out = shutil.copytree(trained, tmp_path / "out")
    monkeypatch.setattr(devices, "find_dtype", lambda name, device: name)  # a CPU would take float32
    options = flags(data_dir=data, out_dir=out, device=device, dtype="float16", max_iters=42, eval_iters=1)
    scope = run_here("train.py", "--init_from=resume", *options)
    assert scope["step"] == 42 and scope["scaler"].get_scale() > 1


@on_both
def test_one_process_of_torchrun_has_the_losses_of_a_run_without(device, data, tmp_path):
    usual = {"max_iters": 5, "eval_interval": 5}
    run_here("train.py", *options_for(device, data, tmp_path / "alone", **usual))
    finish(torchrun(1, *options_for(device, data, tmp_path / "torchrun", **usual)))
    assert_same_run(tmp_path / "torchrun", tmp_path / "alone", 5e-3 if device == "cuda" else 1e-6)


# --- memory

RECIPE = {"dim": 768, "n_layers": 12, "n_heads": 12, "n_kv_heads": 4, "max_seq_len": 512}
RECIPE |= {"vocab_size": 6144}  # recipes.md's 80 million
TUTORIAL = {"vocab_size": 4096, "max_seq_len": 256}  # has heads of 36 numbers: no multiple of 8


@pytest.mark.parametrize("compile", ["false", "auto"])
@pytest.mark.parametrize("shape, documents", [(RECIPE, False), (TUTORIAL, False), (TUTORIAL, True)])
@on_cuda
def test_training_takes_the_memory_that_the_formula_says(device, tmp_path, shape, documents, compile):
    parts = memory(ModelArgs(**shape), 64, half(device))
    want = sum(part[compile == "auto"] for part in parts.values())
    free, _ = torch.cuda.mem_get_info()
    if free < 1.5 * want:
        pytest.skip(f"needs {1.5 * want / 1e9:.0f} GB of free memory on the device")
    ids = np.random.default_rng(0).integers(shape["vocab_size"], size=(2, 300_000))
    write_ids(tmp_path / "ids", {"data00": ids[0], "data01": ids[1]}, shape["vocab_size"])
    if documents:
        chat_rows(tmp_path / "ids", np.full((300, shape["max_seq_len"] + 1), 2, "u1"), shape["vocab_size"])
    length = {"max_iters": 3, "eval_iters": 1, "eval_interval": 100, "gradient_accumulation_steps": 2}
    usual = {"vocab_source": tmp_path / "ids", "out_dir": tmp_path / "out", "device": device}
    gc.collect()  # what another test left would be freed in this one
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_here("train.py", *flags(**shape | length | usual, batch_size=64, compile=compile))
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(want, rel=0.2)


# --- decoding

@pytest.mark.parametrize("stories", [1, 8])
@on_cuda
def test_compiled_decoding_writes_the_greedy_text_of_eager_decoding(device, stories):
    torch.set_float32_matmul_precision("highest")
    eager, compiled = [small_model(lively=True, n_layers=2).to(device).eval() for _ in range(2)]
    fast_decode.compile_decoding(compiled, device)
    for _ in range(3):  # the second and the third story replay the graph of the first
        x = torch.randint(96, (stories, 5), generator=torch.Generator().manual_seed(stories)).to(device)
        want = eager.generate(x, 40, temperature=0)  # past the 32 positions of the context
        assert torch.equal(compiled.generate(x, 40, temperature=0), want)
        assert len(want.unique()) > 10  # no story of one word
