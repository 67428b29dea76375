"""What is compiled gives the numbers of what is not."""

import re

import pytest
import torch

import devices
from tests.fixtures import run, small_model

pytest_plugins = ["tests.fixtures"]


@pytest.fixture(scope="session")
def compiler():
    trouble = devices.compile_trouble("cpu")
    if trouble:
        pytest.skip(f"torch.compile does not work here: {trouble}")


def losses_of(model, forward):
    """The losses of 20 steps on the same 20 batches."""
    torch.manual_seed(1)
    (optimizer,) = model.configure_optimizers(0.1, 3e-3, (0.9, 0.95), "cpu")
    losses = []
    for _ in range(20):
        x = torch.randint(96, (4, 33)).sort(dim=1).values  # something to learn: ids that never fall
        loss = forward(x[:, :-1], x[:, 1:])[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_compiled_training_has_the_losses_of_eager_training(compiler):
    plain, fast = small_model(), small_model()
    want, got = losses_of(plain, plain), losses_of(fast, torch.compile(fast))
    assert want[-1] < want[0] - 0.5
    assert got == pytest.approx(want, abs=1e-3)


def test_compiled_decoding_writes_the_text_of_eager_decoding(compiler):
    plain, model = small_model(lively=True), small_model(lively=True)
    devices.compile_step(model, "cpu")
    calls, compiled = [], model.compiled_step
    model.compiled_step = lambda *args: calls.append(args) or compiled(*args)
    for stories in (1, 3, 1):  # each number has code of its own
        x = torch.randint(96, (stories, 5))
        want = plain.generate(x, 40, temperature=0)  # past the 32 positions of the context
        assert torch.equal(model.generate(x, 40, temperature=0), want)
    assert len(calls) > 3 * 35, "the compiled step was not what wrote"


def test_compiled_code_from_the_cache_has_the_weights_of_its_own_model(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's key knows shapes, not weights
    x, texts = torch.arange(1, 9)[None], []
    for what in ({"seed": 1}, {"seed": 2}, {"seed": 1, "rope_theta": 2.0}):
        torch._dynamo.reset()
        model = small_model(lively=True, n_layers=1, **what)
        want = model.generate(x, 20, temperature=0)
        devices.compile_step(model, "cpu")
        assert torch.equal(model.generate(x, 20, temperature=0), want)
        texts.append(tuple(want[0].tolist()))
    assert len(set(texts)) == 3


def test_sampling_says_how_long_compiling_took_and_writes_the_same(compiler, trained):
    args = (
        "sample.py",
        f"--checkpoint={trained}/ckpt.pt",
        "--temperature=0",
        "--max_new_tokens=20",
        "--device=cpu",
    )
    plain, said = run(*args)
    assert "compiled" not in said
    fast, said = run(*args, "--compile=True", "--dtype=float32")
    assert fast == plain and re.search(r"compiled in \d+\.\d s", said)
