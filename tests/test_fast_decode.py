"""What is compiled gives the numbers of what is not."""

import pytest
import torch

import devices
from devices import compile_error
from extras import causal_blocks, fast_decode
from model import attend
from tests.fixtures import SMALL, losses_of, run_here, small_model

pytest_plugins = ["tests.fixtures"]


@pytest.fixture(scope="session")
def compiler():
    if compile_error("cpu"):
        pytest.skip("torch.compile does not work here")


def test_compiled_training_has_the_losses_of_eager_training(compiler):
    want = losses_of("cpu", "float32", None)
    assert want[-1] < want[0] - 0.5
    assert losses_of("cpu", "float32", "inductor") == pytest.approx(want, abs=1e-3)


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
def test_training_in_bfloat16_on_a_cpu_attends_in_blocks(has_bf16, data, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_bf16)
    options = [*SMALL, f"--data_dir={data}", f"--out_dir={tmp_path}/out", "--max_iters=1", "--dtype=bfloat16"]
    scope = run_here("train.py", *options)
    functions = {layer.attention.attend for layer in scope["raw_model"].layers}
    assert functions == {causal_blocks.attend_in_blocks if has_bf16 else attend}


def test_compiled_decoding_writes_the_text_of_eager_decoding(compiler, monkeypatch):
    calls = []
    compile_for_cpu = fast_decode.compile_for_cpu

    def compile_and_count(model):
        step = compile_for_cpu(model)
        return lambda *args: calls.append(args) or step(*args)

    monkeypatch.setattr(fast_decode, "compile_for_cpu", compile_and_count)
    eager, model = (small_model(lively=True, n_layers=2) for _ in range(2))
    fast_decode.compile_decoding(model, "cpu")
    for stories in (1, 3, 1):  # each number has compiled code of its own
        x = torch.randint(96, (stories, 5))
        want = eager.generate(x, 40, temperature=0)  # past the 32 positions of the context
        assert torch.equal(model.generate(x, 40, temperature=0), want)
    assert len(calls) > 3 * 35  # it was compiled code that wrote


def test_compiled_code_from_the_cache_has_the_weights_of_its_own_model(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's key knows shapes, not weights
    x = torch.arange(1, 9)[None]
    texts = set()
    for changes in ({"seed": 1}, {"seed": 2}, {"seed": 1, "rope_theta": 2.0}):
        torch._dynamo.reset()
        model = small_model(lively=True, n_layers=1, **changes)
        want = model.generate(x, 20, temperature=0)
        fast_decode.compile_decoding(model, "cpu")
        assert torch.equal(model.generate(x, 20, temperature=0), want)
        texts.add(tuple(want[0].tolist()))
    assert len(texts) == 3


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_compiles_on_a_cpu_where_bfloat16_is_in_hardware(has_bf16, monkeypatch, capsys):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(devices, "compile_error", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda model: "compiled")
    monkeypatch.setenv("RANK", "0")
    assert devices.try_compile("eager", "auto", "cpu") == ("compiled" if has_bf16 else "eager")
    assert ("not compiling" in capsys.readouterr().out) != has_bf16
    assert devices.try_compile("eager", "true", "cpu") == "compiled"
    assert devices.try_compile("eager", "auto", "cuda:0") == "compiled"
