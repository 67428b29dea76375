"""extras/export.py. The references are independent: transformers, gguf, llama2.c's own files and its text."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from configurator import InputError, read_json, write_json
from extras import export
from extras.synthetic_stories import write_shard
from model import FeedForward, Transformer, load_checkpoint
from tests import fixtures
from tests.fixtures import LLAMA2C, STORIES260K, TOK512, needs_shared, random_checkpoint, run_here
from tests.test_page import changed, odd_texts

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
gguf = pytest.importorskip("gguf")
pytest_plugins = ["tests.fixtures"]
USE_TOK512 = f"--tokenizer={TOK512}"


def exported(source, kind, path, *options):
    """The path of what extras.export or, if the kind is "page", extras.page writes, in this process."""
    script = "extras/page/__main__.py" if kind == "page" else "extras/export.py"
    options += () if kind == "page" else (f"--export_format={kind}",)
    run_here(script, f"--checkpoint={source}", f"--out={path}", *options)
    return str(path)


@pytest.mark.parametrize("dtype, changes", [
    (torch.float32, {"rms_norm_eps": 2e-6}), (torch.bfloat16, {"tie_word_embeddings": True}),
    (torch.float16, {"num_key_value_heads": 9}),
])  # fmt: skip
def test_a_llama_of_transformers_is_the_same_model_here_and_goes_out_unchanged(tmp_path, dtype, changes):
    shape = {"num_hidden_layers": 3, "num_attention_heads": 9, "num_key_value_heads": 3} | changes
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=72, intermediate_size=100, max_position_embeddings=64, **shape,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    before = transformers.LlamaForCausalLM(config).to(dtype)
    for p in before.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.dim() == 2 else 1.0)
    before.save_pretrained(tmp_path / "llama", max_shard_size="50KB")
    assert (tmp_path / "llama" / "model.safetensors.index.json").exists()  # in several files
    path = exported(tmp_path / "llama", "ckpt", tmp_path / "ckpt.pt")
    ids = torch.randint(0, 128, (2, 64))
    with torch.inference_mode():
        ours = Transformer.from_checkpoint(load_checkpoint(path)).eval()(ids)
        for folder in (tmp_path / "llama", exported(path, "hf", tmp_path / "hf")):
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            assert (ours - theirs(ids).logits).abs().max() < 1e-4
    after = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert before.config.rope_parameters == after.config.rope_parameters
    for name, w in after.state_dict().items():
        assert w.dtype == dtype and torch.equal(w, before.state_dict()[name])


@pytest.mark.parametrize("key, value", [
    ("model_type", "qwen3"), ("architectures", ["LlamaForSequenceClassification"]), ("attention_bias", True),
    ("head_dim", 16), ("hidden_act", "gelu"), ("quantization_config", {"bits": 4}),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
])  # fmt: skip
def test_what_model_py_cannot_represent_is_refused_by_name(tmp_path, key, value):
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, key: value}
    write_json(f"{tmp_path}/config.json", config)
    reason = {"model_type": "qwen3", "architectures": "LlamaForSequenceClassification"}.get(key, key)
    with pytest.raises(InputError, match=reason):
        export.load_weights(str(tmp_path))


def auto_tokenizer(tok, folder):
    """The tokenizer that transformers opens in an export."""
    checkpoint = random_checkpoint(folder / "ckpt.pt", tok.state(), vocab_size=tok.n_words)
    return transformers.AutoTokenizer.from_pretrained(exported(checkpoint, "hf", folder / "hf"))


@pytest.mark.parametrize("keeps", [False, True])  # several spaces stay several, as in Llama 2's
def test_hf_tokenizer_gives_our_ids(tmp_path, keeps):
    tok = fixtures.train_sentencepiece(tmp_path, remove_extra_whitespaces=not keeps)
    assert (tok.decode(tok.encode("a  b")) == "a  b") == keeps
    theirs = auto_tokenizer(tok, tmp_path)
    for text in [row["story"] for row in write_shard(1, 0, 100_000)] + odd_texts():
        ids = tok.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
        assert theirs(text)["input_ids"] == [tok.bos_id, *ids]
        assert theirs.decode(ids) == tok.decode(ids)


def test_chats_have_the_same_ids_in_transformers(zh, tok, tmp_path):
    theirs = auto_tokenizer(tok, tmp_path)
    for chat in fixtures.read_rows(zh / "chats.jsonl"):
        for begin in (True, False):
            encoded = theirs.apply_chat_template(chat, add_generation_prompt=begin, return_dict=True)
            assert encoded["input_ids"] == tok.encode_chat(chat, add_generation_prompt=begin)[0]


@needs_shared
def test_llama2c_is_byte_for_byte_the_original_which_comes_back(tmp_path):
    exported(STORIES260K, "llama2c", tmp_path / "story.bin", USE_TOK512)
    for name, original in (("story.bin", "stories260K.bin"), ("story.tokenizer.bin", "tok512.bin")):
        assert (tmp_path / name).read_bytes() == Path(LLAMA2C, original).read_bytes()
    assert len(os.listdir(tmp_path)) == 2  # nothing is left over
    (tmp_path / "tokenizer.bin").write_bytes(b"Llama's")
    with pytest.raises(InputError, match="tokenizer.bin is there already"):
        exported(STORIES260K, "llama2c", tmp_path / "model.bin", USE_TOK512)
    assert (tmp_path / "tokenizer.bin").read_bytes() == b"Llama's"
    again = load_checkpoint(exported(f"{LLAMA2C}/stories260K.bin", "ckpt", tmp_path / "c.pt"))["model"]
    assert all(torch.equal(again[name], w) for name, w in load_checkpoint(STORIES260K)["model"].items())


@needs_shared
@pytest.mark.parametrize("kind", ["gguf", "gguf_q8_0"])
def test_gguf_holds_every_tensor_and_the_tokenizer(tmp_path, kind):
    reader = gguf.GGUFReader(exported(STORIES260K, kind, tmp_path / "model.gguf", USE_TOK512))
    meta = {name: field.contents() for name, field in reader.fields.items()}
    args, weights, tok, _ = export.load_weights(STORIES260K, TOK512)
    found = {t.name: t for t in reader.tensors}
    for ours, _, theirs in export.weight_names(args):
        w = weights[ours]
        t = found.pop(theirs)
        dtype = "F32" if w.dim() == 1 else "F16" if kind == "gguf" or w.shape[1] == 172 else "Q8_0"
        assert (t.tensor_type.name, list(t.shape)) == (dtype, list(w.shape)[::-1]), ours
        error = np.abs(gguf.quants.dequantize(t.data, t.tensor_type).reshape(w.shape) - w.numpy()).max()
        assert error <= {"F32": 0, "F16": 2**-11, "Q8_0": 0.5 / 127 + 2**-11}[dtype] * w.abs().max(), ours
    assert not found  # a tied output is not there twice
    assert meta["general.architecture"] == meta["tokenizer.ggml.model"] == "llama"
    assert meta["tokenizer.ggml.tokens"] == [tok.piece(i) for i in range(512)]
    assert meta["tokenizer.ggml.scores"] == [tok.sp.get_score(i) for i in range(512)]
    assert meta["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert [meta[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot")] == [1, 2, 1]
    assert (meta["llama.attention.head_count_kv"], meta["llama.feed_forward_length"]) == (4, 172)


FORMATS = ("hf", "llama2c", "llama2c_q80", "gguf", "gguf_q8_0", "page")
LLAMA_CPP, RUN_C = "gguf gguf_q8_0", "llama2c llama2c_q80"


def refused_formats(checkpoint, folder):
    """{format: why} of those that the checkpoint cannot be exported to; nothing is written then."""
    refused = {}
    for kind in FORMATS:
        try:
            exported(checkpoint, kind, folder / kind / "new")
        except InputError as error:
            refused[kind] = str(error)
            assert not list((folder / kind).glob("*"))
    return refused


@pytest.mark.parametrize("options, refused", [
    ({}, ""),
    ({"model_type": "unigram"}, f"hf {LLAMA_CPP} {RUN_C} page"),
    ({"normalization_rule_name": "nmt_nfkc"}, f"hf {LLAMA_CPP} {RUN_C} page"),
    ({"user_defined_symbols": ["<sep>"]}, f"hf {LLAMA_CPP} {RUN_C} page"),
    ({"byte_fallback": False}, f"{LLAMA_CPP} {RUN_C}"),
    ({"control_symbols": ["<sep>"]}, RUN_C),  # its bytes do not begin at id 3
    ({"add_dummy_prefix": False}, RUN_C),
    ({"bos_id": -1}, RUN_C),
    ({"eos_id": -1}, f"{LLAMA_CPP} {RUN_C}"),
    ({"rope_theta": 5e5}, RUN_C), ({"norm_eps": 1e-6}, RUN_C),  # of the model: its C program has others
])  # fmt: skip
def test_a_model_goes_only_where_it_gives_the_same_ids_and_logits(tmp_path, options, refused):
    shape = {key: value for key, value in options.items() if key in ("rope_theta", "norm_eps")}
    tok = fixtures.train_sentencepiece(tmp_path, **{} if shape else options)
    checkpoint = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=tok.n_words, **shape)
    assert set(refused_formats(checkpoint, tmp_path)) == set(refused.split())


def test_a_byte_level_tokenizer_that_is_not_ours_is_refused_by_name(tok, tmp_path):
    state = changed(tok, normalizer={"type": "NFC"}).state()
    refused = refused_formats(random_checkpoint(tmp_path / "c.pt", state, vocab_size=600), tmp_path)
    assert set(refused) == set(FORMATS) - {"hf"}
    assert all("the normalizer NFC" in refused[kind] for kind in ("gguf", "gguf_q8_0", "page"))
    assert "--export_format=hf" in refused["gguf"]


def test_ids_without_a_piece_are_never_sampled(tmp_path):
    tok = fixtures.train_sentencepiece(tmp_path, vocab_size=512)
    checkpoint = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=520)
    folder = exported(checkpoint, "hf", tmp_path / "hf")
    assert transformers.AutoConfig.from_pretrained(folder).vocab_size == 520
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.suppress_tokens == list(range(512, 520))
    table = load_checkpoint(checkpoint)["model"]["tok_embeddings.weight"]
    data = Path(exported(checkpoint, "llama2c", tmp_path / "m.bin")).read_bytes()
    assert struct.unpack("<7i", data[:28])[5] == 512
    assert np.array_equal(np.frombuffer(data, "<f4", 512 * 48, 28).reshape(512, 48), table[:512])


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_tensors_say_whether_the_head_is_tied_whatever_config_json_says(tmp_path, is_tied):
    folder = Path(exported(random_checkpoint(tmp_path / "c.pt", tie_embeddings=False), "hf", tmp_path / "hf"))
    state = safetensors.load_file(folder / "model.safetensors")
    if is_tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    safetensors.save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = read_json(folder / "config.json") | {"tie_word_embeddings": not is_tied}
    write_json(f"{folder}/config.json", config)
    saved = load_checkpoint(exported(folder, "ckpt", tmp_path / "again.pt"))
    model = Transformer.from_checkpoint(saved)
    assert torch.equal(model.output.weight, state["lm_head.weight"])
    assert model.args.tie_embeddings == is_tied
    saved["model_args"]["tie_embeddings"] = True  # a checkpoint can say so, too
    assert torch.equal(Transformer.from_checkpoint(saved).output.weight, state["lm_head.weight"])
    del state["model.norm.weight"]
    safetensors.save_file(state, folder / "model.safetensors", {"format": "pt"})  # transformers only warns
    with pytest.raises(InputError, match="missing model.norm.weight"):
        export.load_weights(str(folder))


@needs_shared
@pytest.mark.parametrize("saved, stop_ids", [([4, 2, 7], [4, 2, 7]), (5, [5]), (None, [2, 1])])
def test_the_ends_of_a_text_are_kept(tmp_path, saved, stop_ids):
    folder = exported(STORIES260K, "hf", tmp_path / "hf", USE_TOK512)
    os.unlink(f"{folder}/generation_config.json")  # then config.json's
    if saved:
        write_json(f"{folder}/generation_config.json", {"eos_token_id": saved})
    path = exported(folder, "ckpt", tmp_path / "c.pt", USE_TOK512)
    assert load_checkpoint(path)["stop_ids"] == stop_ids
    again = exported(path, "hf", tmp_path / "again")
    assert transformers.GenerationConfig.from_pretrained(again).eos_token_id == stop_ids


OTHERS = {  # a file: (what others have made of a good one, why it is refused or "")
    "ddp.pt": (lambda saved: saved | {"model": {f"module.{name}": w for name, w in saved["model"].items()}},
               ""),
    "wrapped.pt": (lambda saved: {"state_dict": saved.pop("model"), **saved}, ""),
    "other.pt": (lambda saved: {"weights": 1}, "no model of this kind"),
    "gpt.pt": (lambda saved: {"transformer.wte.weight": torch.zeros(8, 4)}, "gpt.pt is nanoGPT's: "),
    "int8.pt": (lambda saved: saved | {"model": {name: w.char() for name, w in saved["model"].items()}},
                "its weights are integers"),
    "deep.pt": (lambda saved: saved | {"model_args": saved["model_args"] | {"n_layers": 2000}},
                "n_layers=2000 must be a whole number from 1 to 1024"),
    "ends.pt": (lambda saved: saved | {"stop_ids": "abc"}, "no token ids"),
    "untied.bin": (lambda good: good, ""), "short.bin": (lambda good: good[:-4], "is not complete"),
    "noise.bin": (lambda good: bytes(range(256)) * 40, "its header describes no model"),
    "hf/config.json": (lambda good: good[:-9], "config.json is broken"),
    "hf/model.safetensors": (lambda good: good[:-9], "hf: the weights cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_others_wrote_loads_or_is_refused_in_one_sentence(tmp_path, name):
    change, reason = OTHERS[name]
    good = random_checkpoint(tmp_path / "good.pt", tie_embeddings=False)
    path = tmp_path / name
    source = tmp_path / name.split("/")[0]
    if name.endswith(".pt"):
        torch.save(change(load_checkpoint(good)), path)
    else:
        exported(good, "llama2c" if name.endswith(".bin") else "hf", source)
        path.write_bytes(change(path.read_bytes()))
    before = sorted(tmp_path.rglob("*"))
    if not reason:
        again = load_checkpoint(exported(source, "ckpt", tmp_path / "again.pt"))["model"]
        assert all(torch.equal(w, again[name]) for name, w in load_checkpoint(good)["model"].items())
        return
    with pytest.raises(InputError, match=reason) as raised:
        exported(source, "ckpt", tmp_path / "again.pt")
    assert "\n" not in str(raised.value) and sorted(tmp_path.rglob("*")) == before


def test_an_export_fills_the_target_of_a_link_and_one_that_fails_leaves_the_older(tmp_path, monkeypatch):
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt")
    (tmp_path / "link").symlink_to("target.pt")
    assert Path(exported(checkpoint, "ckpt", tmp_path / "link")).is_symlink()
    for _ in range(2):  # the second replaces the first
        exported(checkpoint, "hf", tmp_path / "old")
    files = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert tmp_path / "old" / "model.safetensors" in files
    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", lambda *args: [][0])
    for out in ("old", "new"):
        with pytest.raises(IndexError):
            exported(checkpoint, "hf", tmp_path / out)
    assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == files
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pt", "link", "old", "target.pt"]


def test_a_weight_that_a_reader_has_added_to_model_py_is_not_left_out(tmp_path, monkeypatch):
    original = FeedForward.__init__

    def with_gain(self, args):
        original(self, args)
        self.gain = torch.nn.Parameter(torch.ones(args.dim))

    monkeypatch.setattr(FeedForward, "__init__", with_gain)
    source = random_checkpoint(tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=r"layers\.0\.feed_forward\.gain"):
        exported(source, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind, out, reason", [
    ("hf", "folder", "holds thesis.tex"), ("hf", "folder/thesis.tex", "is no folder"),
    ("ckpt", "folder/../ckpt.pt", "the source itself"), ("page", "link", "the source itself"),
    ("gguf", "folder", "is no file"), ("page", "ckpt.pt/p", "no folder to write into"),
])  # fmt: skip
def test_an_export_replaces_nothing_but_an_export(kind, out, reason, tmp_path):
    exported(random_checkpoint(tmp_path / "ckpt.pt"), "hf", tmp_path / "folder")
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to("ckpt.pt")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(InputError, match=reason):
        exported(tmp_path / "link", kind, tmp_path / out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@needs_shared
def test_q80_export_is_laid_out_as_runq_reads_it(tmp_path):
    path = exported(STORIES260K, "llama2c_q80", tmp_path / "model.bin", USE_TOK512)
    assert (tmp_path / "tokenizer.bin").read_bytes() == Path(LLAMA2C, "tok512.bin").read_bytes()
    weights = [w.numpy() for _, w in export.iter_weights(*export.load_weights(STORIES260K)[:2])]
    with open(path, "rb") as f:
        header = struct.unpack("<Ii7iBi", f.read(41))  # magic, version, ..., tied, group
        assert header == (0x616B3432, 2, 64, 172, 5, 8, 4, 512, 512, 1, 4) and f.read(215) == bytes(215)
        for w in sorted(weights, key=lambda w: w.ndim):  # the norms first
            if w.ndim == 1:
                assert np.array_equal(np.fromfile(f, "<f4", w.size), w)
                continue
            numbers = np.fromfile(f, "i1", w.size).reshape(-1, 4)
            scale = np.fromfile(f, "<f4", len(numbers))[:, None]
            assert np.abs(numbers * scale - w.reshape(-1, 4)).max() <= scale.max() * 0.501
            assert (np.abs(numbers).max(axis=1) == 127).all()
        assert not f.read()
