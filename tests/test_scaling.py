"""The laboratory for scaling laws: the fit, the prediction before the run, and a run by train.py."""

import pytest

from configurator import InputError, read_json
from extras import scaling
from model import ModelArgs, Transformer, load_checkpoint
from tests.fixtures import read_rows

pytest_plugins = ["tests.fixtures"]

LAW = (0.5, 40.0, 300.0, 0.34)
RUNS = [(scaling.num_params(dim), n * 500_000) for dim in scaling.DIMS for n in (1, 2, 4, 8)]
POINTS = [(N, D, scaling.predict(LAW, N, D)) for N, D in RUNS]


def test_the_fit_finds_the_law_that_made_the_losses_and_one_wrong_loss_hardly_bends_it():
    assert scaling.fit(POINTS) == pytest.approx(LAW, rel=1e-6)
    wrong = [(N, D, 1.3 * loss if i == 15 else loss) for i, (N, D, loss) in enumerate(POINTS)]
    want = scaling.predict(LAW, 1_000_000, 9_000_000)
    assert scaling.predict(scaling.fit(wrong), 1_000_000, 9_000_000) == pytest.approx(want, rel=0.03)
    N, D = scaling.best_split(LAW, 1e14)
    assert 6 * N * D == pytest.approx(1e14)
    assert all(scaling.predict(LAW, N * x, D / x) > scaling.predict(LAW, N, D) for x in (0.9, 1.1))
    with pytest.raises(InputError, match="no law fits"):  # losses that rise with data
        scaling.fit([(N, D, D / 1e5) for N in (1e5, 2e5, 4e5) for D in (1e5, 2e5, 4e5)])


def test_parameters_are_counted_as_the_model_does():
    for dim in (*scaling.DIMS, scaling.LARGER_DIM):
        args = ModelArgs(dim=dim, n_layers=4, n_heads=2, n_kv_heads=2, vocab_size=scaling.vocab_size)
        matrices = [p for p in Transformer(args).parameters() if p.dim() == 2]
        assert scaling.num_params(dim) == sum(p.numel() for p in matrices)


@pytest.fixture
def toy(data, tmp_path, monkeypatch):
    options = {"out_dir": f"{tmp_path}", "data_dir": data, "vocab_size": 512, "BATCH": (2, 32), "seed": 7}
    for name, value in options.items():
        monkeypatch.setattr(scaling, name, value)


def test_the_prediction_is_written_before_the_larger_run_begins(toy, tmp_path, monkeypatch, capsys):
    written = []

    def loss_of(dim, tokens):
        if dim == scaling.LARGER_DIM:
            written.append(read_json(f"{tmp_path}/results.json"))
        return scaling.predict(LAW, scaling.num_params(dim), tokens)

    monkeypatch.setattr(scaling, "loss_of", loss_of)
    pytest.importorskip("matplotlib")
    scaling.main()
    assert len(written) == 1 and "measured" not in written[0]
    results = read_json(f"{tmp_path}/results.json")
    assert results["predicted"] == written[0]["predicted"] == pytest.approx(results["measured"])
    assert "0.0% from the prediction" in capsys.readouterr().out
    assert (tmp_path / "scaling.png").exists()


def test_a_point_is_the_validation_loss_of_a_run_of_train_py_that_is_made_once(toy, tmp_path, monkeypatch):
    loss = scaling.loss_of(32, 64 * 30)
    rows = read_rows(f"{tmp_path}/dim32_1920/log.jsonl")
    assert rows[-1]["step"] == 30 and rows[-1]["val_loss"] == loss < rows[0]["val_loss"]
    assert load_checkpoint(f"{tmp_path}/dim32_1920/last.pt")["config"]["seed"] == 7
    monkeypatch.setattr(scaling, "run", None)  # not called again
    assert scaling.loss_of(32, 64 * 30) == loss
