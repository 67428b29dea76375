"""What the course only mentions: synthetic stories, texts of one's own, broken lines, Muon."""

import copy
import math
import os
import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import prepare_data
import tinystories
import train_tokenizer
from configurator import InputError, write_json
from extras import own_text, synthetic_stories
from extras.muon import MuonAdamW, configure_muon, orthogonalize
from model import load_checkpoint, model_args_dict
from tinystories import CHAT_START, read_meta
from tokenizer import Tokenizer

# isort: off
from tests.fixtures import (
    LLAMA2C, SHARED, SMALL, chat_rows, flags, prepare, read_rows, run, run_here, small_model,
)  # fmt: skip


pytest_plugins = ["tests.fixtures"]


def test_synthetic_stories_repeat_themselves_and_hold_names_to_copy():
    one, two = (synthetic_stories.write_shard(7, 3, 100_000) for _ in range(2))
    assert one == two != synthetic_stories.write_shard(8, 3, 100_000)
    assert 100_000 <= sum(len(s["story"].encode()) for s in one) < 105_000
    assert set(one[0]) == {"story", "instruction", "summary", "source", "bits"}
    others = synthetic_stories.write_shard(1337, 1, 1_000_000)
    assert min(len(s["instruction"]["words"]) for s in others) == 2  # a story without three long words
    known = set(re.findall(r"\w+", " ".join(s["story"] for s in others)))
    copied = 0
    for words in (re.findall(r"\w+", s["story"]) for s in one):
        copied += any(w[0].isupper() and w not in known and words.count(w) >= 3 for w in set(words))
    assert copied > len(one) / 2  # repeat a name that 6,000 other stories do not have


def test_a_text_of_ones_own_becomes_stories_and_shards(tmp_path):
    texts = [s["story"] for s in synthetic_stories.write_shard(0, 0, 90_000)]
    (tmp_path / "my.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    write_json(f"{tmp_path}/my.json", [{"body": text} for text in texts])
    for kind in ("txt", "json"):
        shards = own_text.deal(own_text.read_documents(f"{tmp_path}/my.{kind}", "body"), 50)
        assert [text for shard in shards for text in shard] == texts and len(shards) == 4
    run("tinystories.py", "pretokenize", f"--input_path={tmp_path}/my.txt",
        *flags(data_dir=f"{tmp_path}/mine", vocab_size=400, workers=2))  # fmt: skip
    meta, tok = read_meta(f"{tmp_path}/mine/tok400", 400), Tokenizer(f"{tmp_path}/mine/tok400.model")
    ids = np.concatenate([np.fromfile(p, "<u2") for p in sorted((tmp_path / "mine/tok400").glob("*.bin"))])
    assert tok.decode(ids.tolist()).replace(" ", "") == "".join(texts).replace(" ", "")
    assert all(split["documents"] for split in meta["splits"].values())


ODD_TEXTS = (
    "", " ", "a", "  two  spaces ", "tabs\tand\nnewlines\n\n\nthree", "  lead", "trail  ", "nbsp\u00a0 here",
    "一天，小花 去公园。 她很高兴！", "▁literal ▁ one", "1234 5", "x\u0000y", "é e\u0301", "👍🏽 ok", "“q”",
)  # fmt: skip


def test_the_word_cache_gives_the_ids_of_sentencepiece(data):
    paths = [f"{data}/tok512.model"]
    texts = [s["story"] for s in synthetic_stories.write_shard(0, 0, 100_000)]
    if os.path.isdir(SHARED):
        paths += [f"{LLAMA2C}/tok{n}.model" for n in (512, 4096)]
        texts += tinystories.read_texts(f"{SHARED}/tinystories/data00.json")
    for tok in map(Tokenizer, paths):
        encode = tinystories.text_encoder(tok, "uint16")
        for text in [*texts, *ODD_TEXTS]:
            assert np.frombuffer(encode(text), "<u2").tolist() == tok.encode(text), repr(text)


def test_ids_above_65536_take_four_bytes(tmp_path):
    class Large:
        kind, n_words, bos_id, eos_id = "tokenizers", 70_000, 69_999, -1

        def encode(self, text):
            return [65_536 + ord(c) for c in text]

        def normalize(self, text):
            return text

    ids, counts = tinystories.encode_documents(["ab", "c"], Large(), "uint32")
    assert np.frombuffer(ids, "<u4").tolist() == [69_999, 65_633, 65_634, 69_999, 65_635]
    assert counts["tokens"] == 5


def test_broken_stories_are_named_skipped_and_counted(data, tmp_path, capsys):
    path = f"{tmp_path}/data01.json"
    write_json(path, [{"story": "One."}, {"tale": "no story here"}, {"story": " "}, {"story": "Two."}])
    _, _, counts = tinystories.process_shard({"path": path}, Tokenizer(f"{data}/tok512.model"), "uint16")
    assert counts["documents"] == 2
    out, err = capsys.readouterr()
    assert re.findall(r"data01.json, item (\d): no story", err) == ["2", "3"]
    assert "data01.json: left out: no story (2)" in out
    (tmp_path / "data02.json").write_text('[{"story": "cut o')
    with pytest.raises(InputError, match="data02.json is broken: .* line 1 column 12"):
        tinystories.read_texts(f"{tmp_path}/data02.json")


def test_bad_lines_are_named_by_number_skipped_and_counted(tmp_path, capsys):
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


def test_bits_per_byte_count_the_bytes_that_the_ids_stand_for(data, tok):
    texts = ["a  b   c", "  x = 1\n    y = 2\n", "One day,\n\n Lily ", "１２，\u3000三", "", "a▁b"]
    for tokenizer in (Tokenizer(f"{data}/tok512.model"), tok):
        for text in texts:
            counts = tinystories.encode_documents([text], tokenizer, "uint16")[1]
            assert counts["bytes"] == len(tokenizer.decode(tokenizer.encode(text)).encode())


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


def test_muon_has_the_matrices_of_the_blocks_and_learns_one_batch_by_heart():
    model, x = small_model(), torch.randint(96, (4, 17))
    optimizer = configure_muon(model, 0.1, 1e-2, (0.9, 0.95))
    matrices, vectors, muon = ([id(p) for p in group["params"]] for group in optimizer.param_groups)
    assert sorted(muon) == sorted(id(p) for p in model.layers.parameters() if p.dim() == 2)
    assert sorted(matrices + vectors + muon) == sorted(id(p) for p in model.parameters())  # each once
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1]
    for _ in range(80):
        loss = model(x[:, :-1], x[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


def test_an_optimizer_told_of_gradients_that_are_not_finite_changes_nothing():
    model, x = small_model(), torch.randint(96, (4, 17))
    optimizer = configure_muon(model, 0.1, 1e-2, (0.9, 0.95))
    states = []
    for found_inf in (0, 1, 0):
        model(x[:, :-1], x[:, 1:]).backward()
        for p in model.parameters():
            p.grad[0] = math.nan if found_inf else p.grad[0]
        optimizer.found_inf = torch.tensor(float(found_inf))
        optimizer.step()
        optimizer.zero_grad()
        states.append(copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.equal(states[1][0]["norm.weight"], states[2][0]["norm.weight"])


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
