"""What the course mentions: odd texts, broken lines, Muon, the picture of a run, the tutorial's calls."""

import os
import re
import sys

import numpy as np
import pytest
import torch

import tinystories
from extras import plot
from extras.muon import MuonAdamW, configure_muon, orthogonalize
from model import ModelArgs, Transformer, load_checkpoint
from tinystories import CHAT_START, PretokDataset
from tokenizer import Tokenizer

# isort: off
from tests.fixtures import (
    SMALL, chat_rows, dataset, flags, prepare, random_checkpoint, read_rows, run_here, small_model,
    write_rows,
)  # fmt: skip
from tests.test_page import odd_texts

pytest_plugins = ["tests.fixtures"]


def test_odd_texts_have_the_tokenizers_ids_in_a_shard_and_their_bytes_are_counted(data, tok):
    texts = odd_texts() * 2  # the second time the words are known
    for tokenizer in (Tokenizer(f"{data}/tok512.model"), tok):
        encoded, _ = tinystories.encode_documents(texts, tokenizer, "uint32")
        want = [i for text in texts for i in tokenizer.encode(text, bos=True)]
        assert np.frombuffer(encoded, "<u4").tolist() == want
        for text in ["a  b   c", "  x = 1\n    y = 2\n", "One day,\n\n Lily ", "１２，\u3000三", "", "a▁b"]:
            _, counts = tinystories.encode_documents([text], tokenizer, "uint32")
            assert counts["bytes"] == len(tokenizer.decode(tokenizer.encode(text)).encode())


def test_broken_lines_are_named_by_number_skipped_and_counted(tmp_path, capsys):
    bad = [b"{", b'{"text": 5}', b"", b'{"text": "\\ud800"}', b"\xff"]
    (tmp_path / "raw.jsonl").write_bytes(b"\n".join([b'{"text": "a"}', *bad, b'{"text": "b"}']))
    prepare("pretrain", tmp_path / "raw.jsonl", tmp_path / "out.jsonl")
    assert [row["text"] for row in read_rows(tmp_path / "out.jsonl")] == ["a", "b"]
    out, err = capsys.readouterr()
    assert re.findall(r"raw.jsonl, line (\d): ", err) == ["2", "3", "5", "6"]
    assert "out.jsonl: 2 lines" in out and re.search(r"left out: .*no text \(1\)", out)


@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])
def test_muon_is_torchs(shape):
    ours, theirs = (torch.nn.Parameter(torch.full(shape, 0.01)) for _ in range(2))
    a = MuonAdamW([{"params": [ours], "muon": True}], lr=0.1, weight_decay=0.1)
    b = torch.optim.Muon([theirs], lr=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, atol=0.02 * ours.abs().max().item())  # theirs computes in bfloat16
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        small = 1e-6 * ours.grad[None]  # most of it would be 0 in float16
        s = torch.linalg.svdvals(orthogonalize(small, dtype)[0].float())
        assert s.min() > 0.5 and s.max() < 1.3


def test_muon_has_the_matrices_of_the_blocks():
    model = small_model()
    optimizer = configure_muon(model, 0.1, 1e-2, (0.9, 0.95))
    matrices, vectors, muon = ([id(p) for p in group["params"]] for group in optimizer.param_groups)
    assert sorted(muon) == sorted(id(p) for p in model.layers.parameters() if p.dim() == 2)
    assert sorted(matrices + vectors + muon) == sorted(id(p) for p in model.parameters())  # each once
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1]


def test_a_run_with_muon_that_resumes_ends_with_the_weights_of_one_that_never_stopped(data, tmp_path):
    options = [*SMALL, *flags(data_dir=data, optimizer="muon", decay_lr=False, eval_iters=1)]
    run_here("train.py", *options, *flags(out_dir=tmp_path / "whole", max_iters=6))
    run_here("train.py", *options, *flags(out_dir=tmp_path / "halves", max_iters=3))
    run_here("train.py", *flags(init_from="resume", out_dir=tmp_path / "halves", max_iters=6, device="cpu"))
    want, got = (load_checkpoint(tmp_path / out / "last.pt")["model"] for out in ("whole", "halves"))
    assert all(torch.equal(got[name], w) for name, w in want.items())


def test_fine_tuning_has_the_loss_of_each_conversation_alone(tmp_path):
    base = random_checkpoint(tmp_path / "base.pt", vocab_size=512)
    model = Transformer.from_checkpoint(load_checkpoint(base))
    mask = np.random.default_rng(0).integers(2, size=(2, 65), dtype="u1")
    mask[:, [0, 20, 27]] = CHAT_START
    rows = chat_rows(tmp_path, mask, 512)
    options = flags(init_from=base, vocab_source=tmp_path, out_dir=tmp_path / "out", max_iters=1)
    run_here("train.py", *SMALL, *options, "--batch_size=2", "--gradient_accumulation_steps=1")

    losses = []
    for row, learned in zip(rows.astype(int), mask == 1):
        for begin, end in ((0, 20), (20, 27), (27, 65)):
            x = torch.tensor(row[begin:end])
            nats = -model(x[None])[0, :-1].log_softmax(-1)[torch.arange(len(x) - 1), x[1:]]
            losses += nats[learned[begin + 1 : end]].tolist()
    evaluated, trained_on = read_rows(tmp_path / "out" / "log.jsonl")[:2]
    for loss in (evaluated["val_loss"], trained_on["loss"]):
        assert loss == pytest.approx(np.mean(losses), abs=1e-4)


def test_the_picture_of_a_log_or_one_printed_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    rows = [{"step": 0, "loss": 7.0}, {"step": 1, "train_loss": None, "val_loss": 6.0}]
    log = str(write_rows(tmp_path / "log.jsonl", rows))
    monkeypatch.chdir(tmp_path)
    plot.try_draw(log, "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    plot.try_draw("none.jsonl", "new.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it is not installed: no word of it
    plot.try_draw(log, "new.png")
    assert re.fullmatch("new.png is not drawn: .+\n", capsys.readouterr().out)
    assert sorted(os.listdir()) == ["log.jsonl", "loss.png"]


def test_the_default_model_is_the_tutorials():
    model = Transformer(ModelArgs())
    assert model.num_params() == 8_483_616
    assert ModelArgs(dim=64, multiple_of=2).hidden_dim == 170  # llama2.c's
    assert model(torch.zeros(1, 256, dtype=torch.long)).shape == (1, 256, 4096)


def test_what_a_checkpoint_leaves_out_is_llama2cs_default_not_ours():
    model = small_model(n_kv_heads=4, multiple_of=256, max_seq_len=32)
    model_args = {"dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 96}
    loaded = Transformer.from_checkpoint({"model": model.state_dict(), "model_args": model_args})
    assert (loaded.args.n_kv_heads, loaded.args.hidden_dim, loaded.args.max_seq_len) == (4, 256, 2048)
    ids = torch.randint(96, (2, 32))
    assert torch.equal(loaded(ids), model(ids))


def test_the_tutorials_dataloader_reads_a_shuffled_epoch(data):
    ds = dataset(data)
    order = ds.order(0).tolist()
    assert order != sorted(order) == list(range(len(ds)))
    batches = list(torch.utils.data.DataLoader(ds, batch_size=8))
    for part in (0, 1):  # inputs, targets
        read = torch.cat([batch[part] for batch in batches])
        assert torch.equal(read, torch.stack([ds[i][part] for i in order]))
    for i, (x, _) in zip(order[:5], ds):  # without the loader, too
        assert torch.equal(x, ds[i][0])


def test_pretokenize_can_be_called_with_a_vocabulary_size(data, tmp_path, monkeypatch):
    (tmp_path / "TinyStories_all_data").symlink_to(f"{data}/TinyStories_all_data")
    monkeypatch.setattr(tinystories, "data_dir", str(tmp_path))
    monkeypatch.setattr(tinystories, "vocab_size", 4096)
    monkeypatch.setattr(tinystories, "workers", 1)
    tinystories.pretokenize(400)
    assert len(PretokDataset("train", 64, 400, "custom", data_dir=str(tmp_path))) > 100
