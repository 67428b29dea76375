"""extras/bench.py: what it says of memory, and that its report comes to its end whatever fails."""

import math
import re
import time

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from devices import autocast, find_dtype
from extras import bench, contenders, gpu_report
from extras.fit import memory
from model import ModelArgs, Transformer
from tests.fixtures import flags, run

pytest_plugins = ["tests.fixtures"]

WIDE = {"dim": 192, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 640, "max_seq_len": 64}
LARGE_VOCABULARY = {"dim": 72, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "vocab_size": 3000}
LARGE_VOCABULARY |= {"max_seq_len": 128}
ROWS = 4


def attend_as_on_cuda(q, k, v, mask=None, dropout=0.0):
    """Flash attention there: keys and values for each query head, heads padded to a multiple of 8 numbers."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    head_dim = q.shape[-1]
    padding = (0, -head_dim % 8)
    if padding[1]:
        q, k, v = (F.pad(x, padding) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / math.sqrt(head_dim))
    return y[..., :head_dim]


def saved_bytes(args, dtype, compiled=False, attend=None):
    """What the forward pass keeps for the backward pass, but for the parameters: each memory block once."""
    model = Transformer(args)
    for layer in model.layers:
        layer.attention.attend = attend or layer.attention.attend
    forward = model
    if (
        compiled
    ):  # the compiler's choice of what to keep and what to compute again, without its code generator
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


def said_bytes(args, dtype, column, kind):
    """The same by extras/fit.py. Of the logits, the softmax in float32, or compiled the logits in `dtype`."""
    parts = memory(args, ROWS, dtype, kind=kind)
    logits = args.vocab_size * ROWS * args.max_seq_len
    kept = torch.finfo(getattr(torch, dtype)).bits // 8 if column else 4
    copies = parts[f"copies of the weights in {dtype}"][column]
    return parts["activations"][column] + copies + kept * logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [WIDE, LARGE_VOCABULARY])
def test_eager_training_keeps_the_memory_that_fit_says(shape, dtype):
    args = ModelArgs(**shape, multiple_of=32)
    assert said_bytes(args, dtype, 0, "cpu") == pytest.approx(saved_bytes(args, dtype), rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_training_keeps_the_memory_that_fit_says(dtype):
    args = ModelArgs(**WIDE, multiple_of=32)
    assert said_bytes(args, dtype, 1, "cpu") == pytest.approx(
        saved_bytes(args, dtype, compiled=True), rel=0.02
    )


def test_attention_on_cuda_keeps_the_memory_that_fit_says():
    args = ModelArgs(**WIDE | {"dim": 216}, multiple_of=32)  # heads of 36
    got = saved_bytes(args, "bfloat16", attend=attend_as_on_cuda)
    assert said_bytes(args, "bfloat16", 0, "cuda") == pytest.approx(got, rel=0.02)
    assert said_bytes(args, "bfloat16", 0, "cpu") < 0.95 * got


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizer_takes_the_memory_that_fit_says(name):
    args = ModelArgs(**WIDE, multiple_of=32)
    ways = contenders.training_ways(args, (1, 2, 64), "cpu", "float32", "false", False)
    states = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: states.extend(optimizer.state.values()))
    ways[f"train.py, {name}, eager"]()()
    hook.remove()
    moments = [x for state in states for x in state.values() if x.dim()]  # not the number of the step
    want = memory(args, 2, optimizer=name)[f"optimizer ({name})"][0]
    assert sum(x.nbytes for x in moments) == want


def test_fit_prints_a_table_whose_total_is_the_sum():
    shape = flags(dim=768, n_layers=12, n_heads=12, vocab_size=6144, max_seq_len=512, batch_size=64)
    printed, _ = run("extras.bench", "--fit", *shape, "--optimizer=muon")
    assert "80,235,264 parameters" in printed
    columns = re.findall(r"(?m)^(\w.*?) +([\d.]+) +([\d.]+)$", printed)
    *parts, total = [(float(eager), float(compiled)) for _, eager, compiled in columns]
    assert total == pytest.approx([sum(column) for column in zip(*parts)], abs=0.05)
    assert total[1] < total[0] and len(parts) == 6


def test_a_way_that_runs_out_of_memory_or_time_has_a_row_and_the_next_one_runs(monkeypatch, capsys):
    monkeypatch.setattr(bench, "device", "cpu")
    monkeypatch.setattr(bench, "rounds", 1)

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    ways = {"large": too_large, "small": lambda: lambda: 3}
    works, notes = bench.start(ways, lambda work: work())
    rows = bench.report("train", "tokens/s", bench.interleave(works), notes)
    assert [(row["what"], row.get("not run")) for row in rows] == [
        ("small", None),
        ("large", "out of memory"),
    ]
    assert "large" in capsys.readouterr().out
    table = list(gpu_report.table(rows, gpu_report.TRAIN_COLUMNS))
    assert len({line.count("|") for line in table}) == 1 and "not run: out of memory" in table[-1]
    monkeypatch.setattr(bench, "max_seconds", 1)
    monkeypatch.setattr(bench, "BEGAN", time.perf_counter() - 2)
    assert bench.start({"small": lambda: lambda: 3}, lambda work: work()) == (
        {},
        {"small": {"not run": "no time left"}},
    )


def test_the_transformers_library_is_measured_at_the_same_shape():
    pytest.importorskip("transformers")
    args = ModelArgs(**WIDE, multiple_of=32)
    theirs = contenders.llama(args, "cpu")
    assert sum(p.numel() for p in theirs.parameters()) == Transformer(args).num_params()
    ways = contenders.training_ways(args, (2, 2, 64), "cpu", "float32", "false", True)
    assert list(ways) == ["the tutorial's way", "train.py, adamw, eager", "train.py, muon, eager",
                          "transformers, adamw, eager"]  # fmt: skip
    assert ways["transformers, adamw, eager"]()() == 256  # tokens of a step
    ways = contenders.generating_ways(args, "cpu", "false", True)
    write = ways[f"transformers, {find_dtype('bfloat16', 'cpu')}"]()
    assert write(torch.ones(2, 5, dtype=torch.long), 7).shape == (2, 12)


def test_a_part_that_fails_or_takes_too_long_says_so():
    assert gpu_report.run(["-c", "print(1)"], 20) == ("1\n", "")
    _, failure = gpu_report.run(["-c", "raise ValueError('no good')"], 20)
    assert failure == "failed: ValueError: no good"
    slow = "import time\nprint('begun', flush=True)\ntime.sleep(100)"
    printed, failure = gpu_report.run(["-c", slow], 2)
    assert printed.startswith("begun") and failure == "stopped after 2 s"


def test_without_time_every_part_says_that_it_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "BUDGET", 0)
    gpu_report.write_report(tmp_path / "report.md", "cpu", toy=False)
    assert (tmp_path / "report.md").read_text().count("not run: no time left") == 6


def test_the_report_on_a_gpu_has_all_its_parts_at_a_toy_size(tmp_path):
    printed, _ = run("extras.bench", "--gpu", "--toy", "--device=cpu", f"--out={tmp_path}/report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text == printed
    assert "failed" not in text and "stopped" not in text and "not run" not in text
    assert re.search(r"\d+ skipped", text)  # tests/test_cuda.py
    for way in (
        "the tutorial's way",
        "train.py, adamw, eager",
        "train.py, muon, eager",
        "sample.py, float32, 2",
    ):
        assert re.search(rf"(?m)^\| {way} \| \d", text), way
    loss, first, last, bpb = map(float, re.search(r"\| 6 \| 384 \|.*?" + r"\| ([\d.]+) " * 4, text).groups())
    assert last < first and loss > 1 and bpb > 1
    assert re.search(r"(?m)^> One day, Lily met a Shoggoth\S", text)
