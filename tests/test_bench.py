"""extras/memory.py says what training keeps; extras/bench.py measures every way."""

import json
from functools import partial

import pytest
import torch

from devices import autocast, find_dtype
from extras.memory import memory
from extras.muon import configure_muon
from model import ModelArgs, Transformer, attend
from tests.fixtures import flags, run

pytest_plugins = ["tests.fixtures"]

WIDE = {"dim": 192, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 640, "max_seq_len": 64}
ODD_HEADS = WIDE | {"dim": 216}  # heads of 36
ROWS = 4


def saved_bytes(args, dtype, compiled, device_type):
    """What the forward pass keeps for the backward pass, except the parameters: each memory block once."""
    model = Transformer(args)
    if device_type == "cuda":
        for layer in model.layers:
            layer.attention.attend = partial(attend, grouped=False)
    forward = model
    if compiled:  # the compiler's choice of what to keep, without its code generator
        torch._dynamo.reset()
        forward = torch.compile(model, backend="aot_eager_decomp_partition")
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    blocks = {}

    def keep(tensor):
        blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    x = torch.randint(args.vocab_size, (ROWS, args.max_seq_len))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast("cpu", dtype):
        forward(x, x).backward()
    return sum(block.nbytes() for address, block in blocks.items() if address not in parameters)


@pytest.mark.parametrize("shape, dtype, compiled, device_type", [
    (WIDE, "float32", False, "cpu"), (WIDE | {"vocab_size": 3000}, "bfloat16", False, "cpu"),
    (WIDE, "float32", True, "cpu"), (WIDE, "bfloat16", True, "cpu"), (ODD_HEADS, "bfloat16", False, "cuda"),
])  # fmt: skip
def test_training_keeps_the_memory_that_the_formula_says(shape, dtype, compiled, device_type):
    args = ModelArgs(**shape)
    parts = memory(args, ROWS, dtype, device_type=device_type)
    size = torch.finfo(getattr(torch, dtype)).bits // 8 if compiled else 4
    logits = size * args.vocab_size * ROWS * args.max_seq_len  # compiled; else their softmax, in float32
    want = parts["activations"][compiled] + parts[f"copies of the weights in {dtype}"][compiled] + logits
    assert want == pytest.approx(saved_bytes(args, dtype, compiled, device_type), rel=0.02)


@pytest.mark.parametrize("name, configure", [
    ("adamw", Transformer.configure_optimizers), ("muon", partial(configure_muon, compile="false")),
])  # fmt: skip
def test_the_optimizer_takes_the_memory_that_the_formula_says(name, configure):
    model = Transformer(ModelArgs(**WIDE))
    optimizer = configure(model, 0.1, 1e-3, (0.9, 0.95))
    x = torch.randint(WIDE["vocab_size"], (ROWS, 64))
    model(x, x).backward()
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values() if x.dim()]  # no step's number
    want, _ = memory(model.args, ROWS, optimizer=name)[f"optimizer ({name})"]
    assert sum(x.nbytes for x in moments) == want


def test_bench_measures_every_way_at_a_toy_size(tmp_path):
    pytest.importorskip("transformers")
    usual = {"device": "cpu", "compile": "false", "rounds": 1, "batch_size": 2, "new_tokens": 4}
    run("extras.bench", *flags(**WIDE | usual, stories="1,2", out=f"{tmp_path}/bench.json"))
    rows = json.loads((tmp_path / "bench.json").read_bytes())["rows"]
    names = ["the tutorial's way", "train.py, adamw, eager", "train.py, muon, eager"]
    names += ["transformers, adamw, eager", "the tutorial's way, 1"]
    ways = ("sample.py, float32", "sample.py, bfloat16", f"transformers, {find_dtype('bfloat16', 'cpu')}")
    assert [row["what"] for row in rows] == names + [f"{way}, {count}" for count in (1, 2) for way in ways]
    assert all(row["tokens/s"] > 0 for row in rows)
