"""What the course only mentions: stories without a network, broken lines, Muon, the picture of a run."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import prepare_data
import tinystories
import train_tokenizer
from configurator import write_json
from extras import plot, synthetic_stories
from extras.muon import MuonAdamW, configure_muon, orthogonalize
from model import ModelArgs, Transformer, load_checkpoint, model_args_dict
from tinystories import CHAT_START, PretokDataset
from tokenizer import Tokenizer

# isort: off
from tests.fixtures import (
    HERE, LLAMA2C, SHARED, SMALL, chat_rows, dataset, flags, prepare, read_rows, run_here, small_model,
    write_rows,
)  # fmt: skip

pytest_plugins = ["tests.fixtures"]


ODD_TEXTS = (
    "", " ", "a", "  two  spaces ", "tabs\tand\nnewlines\n\n\nthree", "  lead", "trail  ", "nbsp\u00a0 here",
    "一天，小花 去公园。 她很高兴！", "▁literal ▁ one", "1234 5", "x\u0000y", "é e\u0301", "👍🏽 ok", "“q”",
)  # fmt: skip


def test_the_word_cache_gives_the_ids_of_sentencepiece_and_bytes_are_those_of_the_ids(data, tok):
    paths = [f"{data}/tok512.model"]
    texts = [s["story"] for s in synthetic_stories.write_shard(0, 0, 100_000)]
    if os.path.isdir(SHARED):
        paths += [f"{LLAMA2C}/tok{n}.model" for n in (512, 4096)]
        texts += tinystories.read_texts(f"{SHARED}/tinystories/data00.json")
    for tokenizer in (*map(Tokenizer, paths), tok):
        documents = [*texts[: 50 if tokenizer is tok else None], *ODD_TEXTS]
        encoded, _ = tinystories.encode_documents(documents, tokenizer, "uint32")
        want = [i for text in documents for i in tokenizer.encode(text, bos=True)]
        assert np.frombuffer(encoded, "<u4").tolist() == want
        for text in ["a  b   c", "  x = 1\n    y = 2\n", "One day,\n\n Lily ", "１２，\u3000三", "", "a▁b"]:
            _, counts = tinystories.encode_documents([text], tokenizer, "uint32")
            assert counts["bytes"] == len(tokenizer.decode(tokenizer.encode(text)).encode())


def test_broken_stories_and_lines_are_named_by_number_skipped_and_counted(data, tmp_path, capsys):
    path = f"{tmp_path}/data01.json"
    write_json(path, [{"story": "One."}, {"tale": "no story here"}, {"story": " "}, {"story": "Two."}])
    _, _, counts = tinystories.process_shard({"path": path}, Tokenizer(f"{data}/tok512.model"), "uint16")
    assert counts["documents"] == 2
    out, err = capsys.readouterr()
    assert re.findall(r"data01.json, item (\d): no story", err) == ["2", "3"]
    assert "data01.json: left out: no story (2)" in out
    bad = [b"{", b'{"text": 5}', b"", b'{"text": "\\ud800"}', b"\xff"]
    (tmp_path / "raw.jsonl").write_bytes(b"\n".join([b'{"text": "a"}', *bad, b'{"text": "b"}']))
    prepare("pretrain", tmp_path / "raw.jsonl", tmp_path / "out.jsonl")
    assert [row["text"] for row in read_rows(tmp_path / "out.jsonl")] == ["a", "b"]
    out, err = capsys.readouterr()
    assert re.findall(r"raw.jsonl, line (\d): ", err) == ["2", "3", "5", "6"]
    assert "out.jsonl: 2 lines" in out and re.search(r"left out: .*no text \(1\)", out)


def test_max_chars_caps_what_is_learned_and_takes_it_from_everywhere(zh):
    path = str(zh / "chunks.jsonl")
    texts = list(train_tokenizer.sample_texts(path, 5000))
    assert sum(map(len, texts)) == 5000
    parts = prepare_data.split_file(path)[1:]
    firsts = [next(prepare_data.read_texts_from_jsonl(path, *part)) for part in parts]
    assert all(any(first.startswith(text[:20]) for text in texts) for first in firsts)


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


class CountReads(TorchDispatchMode):
    """Count the places where Python asks for a number that a tensor holds: on a GPU it waits for it."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_a_logged_step_waits_for_the_device(data, tmp_path, optimizer):
    reads = []
    for steps in (5, 9):
        options = flags(data_dir=data, out_dir=tmp_path / str(steps), max_iters=steps, optimizer=optimizer)
        options += flags(log_interval=1000, eval_iters=1, eval_interval=1000)
        with CountReads() as mode:
            run_here("train.py", *SMALL, *options)
        reads.append(mode.reads)
    assert reads[0] == reads[1] > 0


def test_fine_tuning_has_the_loss_of_each_conversation_alone(tmp_path):
    model = small_model(lively=True, max_seq_len=64)
    torch.save({"model": model.state_dict(), "model_args": model_args_dict(model.args)}, tmp_path / "base.pt")
    rng = np.random.default_rng(0)
    mask = rng.integers(2, size=(2, 65), dtype="u1")
    mask[:, [0, 20, 27]] = CHAT_START
    rows = chat_rows(tmp_path, mask, 96)
    options = flags(
        init_from=tmp_path / "base.pt", vocab_source=tmp_path, out_dir=tmp_path / "out", max_iters=1,
        batch_size=2, gradient_accumulation_steps=1, compile="false", device="cpu", dtype="float32",
    )  # fmt: skip
    run_here("train.py", *options)

    losses = []
    for row, learned in zip(rows.astype(int), mask == 1):
        for begin, end in ((0, 20), (20, 27), (27, 65)):
            x = torch.tensor(row[begin:end])
            nats = -model(x[None])[0, :-1].log_softmax(-1)[torch.arange(len(x) - 1), x[1:]]
            losses += nats[learned[begin + 1 : end]].tolist()
    evaluated, trained_on = read_rows(tmp_path / "out" / "log.jsonl")[:2]
    for loss in (evaluated["val_loss"], trained_on["loss"]):
        assert loss == pytest.approx(np.mean(losses), abs=1e-4)


def test_the_picture_of_a_log_or_one_printed_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    bad = {"step": 1, "train_loss": None, "val_loss": 6.0, "val_bpb": 2.0, "limit_bpb": 1.0}
    log = str(write_rows(tmp_path / "log.jsonl", [{"step": 0, "loss": 7.0}, bad]))
    for _ in range(2):  # an older picture is replaced
        plot.try_draw(log, f"{tmp_path}/loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    plot.draw([log, log], f"{tmp_path}/compare.svg")
    assert "limit, 3.00" in (tmp_path / "compare.svg").read_text()
    assert capsys.readouterr().out == ""
    (tmp_path / "folder.png").mkdir()
    for source, picture in ((log, "folder.png"), (f"{tmp_path}/none.jsonl", "new.png")):
        plot.try_draw(source, f"{tmp_path}/{picture}")
        printed = capsys.readouterr().out
        assert printed.startswith(f"{tmp_path}/{picture} is not drawn: ") and printed.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["compare.svg", "folder.png", "log.jsonl", "loss.png"]


@pytest.mark.parametrize("source, printed", [
    ("raise ImportError('numpy is too old. A second\\nsentence')", "numpy is too old\n"),
    ("raise RuntimeError", "RuntimeError\n"),
    (None, ""),  # it is not installed
])  # fmt: skip
def test_a_matplotlib_that_is_missing_or_broken(source, printed, tmp_path):
    """In a process of its own, which has not imported matplotlib yet."""
    if source:
        (tmp_path / "stub").mkdir()
        (tmp_path / "stub" / "matplotlib.py").write_text(source)
    hide = "" if source else "sys.modules['matplotlib'] = None; "
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'stub')!r}); {hide}"
    code += "from extras.plot import try_draw; try_draw('log.jsonl', 'loss.png')"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (printed and f"loss.png is not drawn: {printed}")


# --- what a reader of the tutorial, or of llama2.c, tries

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
