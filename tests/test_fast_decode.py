"""What is compiled gives the numbers of what is not."""

import pytest
import torch

import devices
from devices import compile_error
from extras import causal_blocks, fast_decode
from model import attend, load_checkpoint
from tests.fixtures import SMALL, flags, run_here, small_model

pytest_plugins = ["tests.fixtures"]


@pytest.fixture(scope="session")
def compiler():
    if compile_error("cpu"):
        pytest.skip("torch.compile does not work here")


def test_attention_in_two_blocks_is_attention(compiler, monkeypatch):
    q, k, v, weights = (torch.randn(2, heads, 33, 8) for heads in (4, 2, 2, 4))  # 33: not two equal halves

    def outcome(function):
        inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        y = function(*inputs)
        (y * weights).sum().backward()
        return [y.detach(), *(tensor.grad for tensor in inputs)]

    want = outcome(attend)
    calls = []
    monkeypatch.setattr(causal_blocks, "attend", lambda *args: calls.append(args) or attend(*args))
    got = outcome(torch.compile(causal_blocks.attend_in_blocks))
    assert not calls  # it was the blocks that computed
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    causal_blocks.attend_in_blocks(q, k, v)  # eager
    mask = torch.ones(33, 33, dtype=torch.bool)
    torch.testing.assert_close(causal_blocks.attend_in_blocks(q, k, v, mask), attend(q, k, v, mask))
    assert len(calls) == 2


@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_cpu_compiles_and_with_bfloat16_attends_in_blocks(has_bf16, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(devices, "compile_error", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda model: model)
    options = flags(data_dir=data, out_dir=tmp_path, max_iters=1, dtype="bfloat16", compile="auto")
    scope = run_here("train.py", *SMALL, *options)
    functions = {layer.attention.attend for layer in scope["raw_model"].layers}
    assert functions == {causal_blocks.attend_in_blocks if has_bf16 else attend}
    said = capsys.readouterr().out
    assert ("; cpu, bfloat16\n" in said) == has_bf16 and "not compiling" not in said
    assert ("bfloat16 is slow on this cpu: taking float32" in said) != has_bf16
    assert load_checkpoint(tmp_path / "last.pt")["config"]["dtype"] == "bfloat16"  # what a resume asks for


def test_compiled_decoding_writes_the_text_of_eager_decoding(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's key knows shapes, not weights
    calls = []
    compile_for_cpu = fast_decode.compile_for_cpu

    def compile_and_count(model):
        step = compile_for_cpu(model)
        return lambda *args: calls.append(args) or step(*args)

    monkeypatch.setattr(fast_decode, "compile_for_cpu", compile_and_count)
    one, three = (torch.arange(1, 5 * stories + 1).view(stories, 5) for stories in (1, 3))
    models = [({"seed": 1, "rope_theta": 2.0}, [one]), ({"seed": 2}, [one]), ({"seed": 1}, [one, three, one])]
    texts = set()
    for changes, prompts in models:
        torch._dynamo.reset()
        model = small_model(lively=True, n_layers=1, **changes)
        want = [model.generate(x, 40, temperature=0) for x in prompts]  # past the 32 positions of the context
        fast_decode.compile_decoding(model, "cpu")
        for x, text in zip(prompts, want):  # each number of stories has compiled code of its own
            assert torch.equal(model.generate(x, 40, temperature=0), text)
        texts.add(str(want[0]))
    assert len(texts) == 3 and len(calls) > 5 * 35  # it was compiled code that wrote
