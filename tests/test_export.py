"""extras/export.py. The references are independent: transformers, gguf, llama2.c's own files and its text."""

import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from configurator import InputError
from extras import export
from model import ModelArgs, Transformer, load_checkpoint
from tests.fixtures import (
    LLAMA2C,
    SHARED,
    STORIES260K,
    TOK512,
    golden,
    needs_shared,
    random_checkpoint,
    run,
    run_here,
)
from tokenizer import Tokenizer

pytest_plugins = ["tests.fixtures"]


def exported(source, export_format, path, tokenizer=""):
    export.FORMATS[export_format][0](*export.load_weights(source, tokenizer), str(path))
    return str(path)


@torch.inference_mode()
def our_logits(path, ids):
    return Transformer.from_checkpoint(load_checkpoint(path)).eval()(ids)


@torch.inference_mode()
def their_logits(folder, ids):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits


@pytest.mark.parametrize(
    "shape", [{}, {"tie_embeddings": False, "rope_theta": 5e5, "norm_eps": 1e-6}, {"n_kv_heads": 6}]
)
def test_our_model_computes_what_transformers_llama_computes(tmp_path, shape):
    path = random_checkpoint(tmp_path / "ckpt.pt", **shape)
    ids = torch.randint(0, 96, (2, 64))
    pytest.importorskip("transformers")
    folder = exported(path, "hf", tmp_path / "hf")
    assert (our_logits(path, ids) - their_logits(folder, ids)).abs().max() < 1e-4


def test_rope_rows_are_reordered_within_each_head_and_back():
    w = torch.arange(12.0)[:, None] * torch.ones(1, 3)
    assert export.permute(w, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(export.unpermute(export.permute(w, 2), 2), w)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype_and_their_bits(tmp_path, dtype):
    pytest.importorskip("transformers")
    path = random_checkpoint(tmp_path / "ckpt.pt", dtype=dtype)
    again = exported(exported(path, "hf", tmp_path / "hf"), "ckpt", tmp_path / "again.pt")
    weights = load_checkpoint(again)["model"]
    for name, w in load_checkpoint(path)["model"].items():
        assert weights[name].dtype == dtype and torch.equal(w, weights[name])


def test_a_llama_of_transformers_comes_in_and_goes_out_unchanged(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=72, intermediate_size=100, num_hidden_layers=3, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=64, rms_norm_eps=2e-6, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    before = transformers.LlamaForCausalLM(config)
    for p in before.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.dim() == 2 else 1.0)
    before.save_pretrained(tmp_path / "llama", max_shard_size="100KB")
    assert (tmp_path / "llama" / "model.safetensors.index.json").exists()  # in several files
    path = exported(str(tmp_path / "llama"), "ckpt", tmp_path / "ckpt.pt")
    ids = torch.randint(0, 128, (2, 64))
    assert (our_logits(path, ids) - their_logits(tmp_path / "llama", ids)).abs().max() < 1e-4
    after = transformers.AutoModelForCausalLM.from_pretrained(exported(path, "hf", tmp_path / "hf"))
    assert before.config.rope_parameters == after.config.rope_parameters
    for name, w in after.state_dict().items():
        assert torch.equal(w, before.state_dict()[name])


@pytest.mark.parametrize("key, value", [
    ("model_type", "qwen3"), ("architectures", ["LlamaForSequenceClassification"]), ("attention_bias", True),
    ("mlp_bias", True), ("head_dim", 16), ("hidden_act", "gelu"), ("quantization_config", {"bits": 4}),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
])  # fmt: skip
def test_what_model_py_cannot_represent_is_refused_by_name(tmp_path, key, value):
    pytest.importorskip("transformers")
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reason = {"model_type": "qwen3", "architectures": "LlamaForSequenceClassification"}.get(key, key)
    with pytest.raises(InputError, match=reason):
        export.load_weights(str(tmp_path))


def test_a_folder_without_all_its_weights_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = exported(random_checkpoint(tmp_path / "ckpt.pt"), "hf", tmp_path / "hf")
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    state = {name: w for name, w in model.state_dict().items() if name != "model.norm.weight"}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(InputError, match="missing model.norm.weight"):  # transformers only warns
        export.load_weights(folder)
    path = os.path.join(folder, "model.safetensors")
    for length in (os.path.getsize(path) - 4, 30, 0):
        os.truncate(path, length)
        with pytest.raises(InputError, match=f"{folder}: the weights cannot be read"):
            export.load_weights(folder)


def train_sentencepiece(folder, **options):
    """The path of a sentencepiece model like tinystories.py's, but for the options."""
    rows = json.loads(Path(SHARED, "tinystories/data00.json").read_bytes())[:200]
    settings = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(row["story"].replace(" and ", "  and   ") for row in rows), vocab_size=500,
        model_prefix=f"{folder}/trained", minloglevel=2, **settings | options,
    )  # fmt: skip
    return f"{folder}/trained.model"


@needs_shared
@pytest.mark.parametrize("name", ["tok512", "tok4096", "spaces"])
def test_hf_tokenizer_gives_our_ids(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    texts = [row["story"] for row in json.loads(Path(SHARED, "tinystories/data00.json").read_bytes())[:200]]
    spaces = {"remove_extra_whitespaces": False}  # several stay several, as in Llama 2's
    path = train_sentencepiece(tmp_path, **spaces) if name == "spaces" else f"{LLAMA2C}/{name}.model"
    tok = Tokenizer(path)
    assert (tok.decode(tok.encode("a  b")) == "a  b") == (name == "spaces")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words)
    folder = exported(checkpoint, "hf", tmp_path / "hf")
    ends = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    assert ends == [tok.eos_id, tok.bos_id]  # where the next story begins, this one has ended, too
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts += ["", " ", "\n", "  a   b  ", "\ta\n\n b ", " \n ", "a\u3000b", "▁▁a▁ ▁b▁", "\r\n", "</s> <unk>"]
    texts += ["aaaaaaaaaa ....... !!!!!", "é😀👩‍👩‍👧 naïve ﬁ", "hahahahaha", "<s>", "江南好，风景旧曾谙。"]
    generator = np.random.default_rng(0)
    texts += ["".join(generator.choice(list("aaab .. \n▁ehto!é中"), 30)) for _ in range(500)]
    for text in texts:
        ids = tok.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
        assert theirs(text)["input_ids"] == [tok.bos_id, *ids]
        assert theirs.decode(ids) == tok.decode(ids)


def test_texts_and_chats_have_the_same_ids_in_transformers(zh, tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words)
    theirs = transformers.AutoTokenizer.from_pretrained(exported(checkpoint, "hf", tmp_path / "hf"))
    for text in (zh / "chunks.jsonl").read_text(encoding="utf-8").splitlines():
        assert theirs(text)["input_ids"] == tok.encode(text)
    for chat in map(json.loads, (zh / "chats.jsonl").read_text(encoding="utf-8").splitlines()):
        for begin in (True, False):
            encoded = theirs.apply_chat_template(chat, add_generation_prompt=begin, return_dict=True)
            assert encoded["input_ids"] == tok.encode_chat(chat, add_generation_prompt=begin)[0]


@needs_shared
def test_llama2c_export_is_byte_for_byte_the_original(tmp_path):
    source = (f"--checkpoint={STORIES260K}", f"--tokenizer={TOK512}")
    run("extras.export", *source, "--export_format=llama2c", f"--out={tmp_path}/model.bin")
    assert (tmp_path / "model.bin").read_bytes() == Path(LLAMA2C, "stories260K.bin").read_bytes()
    assert (tmp_path / "tokenizer.bin").read_bytes() == Path(LLAMA2C, "tok512.bin").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["model.bin", "tokenizer.bin"]  # nothing is left over


@needs_shared
def test_a_bin_of_llama2c_becomes_a_checkpoint_that_writes_the_golden_text(tmp_path):
    options = (f"--tokenizer={TOK512}", "--export_format=ckpt", f"--out={tmp_path}/c.pt")
    run("extras.export", f"--checkpoint={LLAMA2C}/stories260K.bin", *options)
    out, _ = run("sample.py", f"--checkpoint={tmp_path}/c.pt", "--temperature=0", "--max_new_tokens=200")
    assert out.rstrip("\n") == golden()


@needs_shared
def test_q80_export_is_laid_out_as_runq_reads_it(tmp_path):
    data = Path(exported(STORIES260K, "llama2c_q80", tmp_path / "q.bin", TOK512)).read_bytes()
    header = struct.unpack("<Ii7iBi", data[:41])  # magic, version, ..., tied, group
    assert header == (0x616B3432, 2, 64, 172, 5, 8, 4, 512, 512, 1, 4) and data[41:256] == bytes(215)
    arrays = [w.numpy() for _, w in export.iter_weights(*export.load_weights(STORIES260K)[:2])]
    at = 256
    for w in (w for w in arrays if w.ndim == 1):
        assert np.array_equal(np.frombuffer(data, np.float32, w.size, at), w)
        at += 4 * w.size
    for w in (w for w in arrays if w.ndim == 2):
        q = np.frombuffer(data, np.int8, w.size, at).reshape(-1, 4)
        scale = np.frombuffer(data, np.float32, w.size // 4, at + w.size)[:, None]
        assert np.abs(q * scale - w.reshape(-1, 4)).max() <= scale.max() * 0.501
        assert (np.abs(q).max(axis=1) == 127).all()
        at += w.size + 4 * (w.size // 4)
    assert at == len(data)


@pytest.mark.parametrize("shape", [{"rope_theta": 5e5}, {"norm_eps": 1e-6}])
def test_llama2c_is_refused_what_its_c_program_has_built_in(tmp_path, shape):
    path = random_checkpoint(tmp_path / "ckpt.pt", **shape)
    for export_format in ("llama2c", "llama2c_q80"):
        with pytest.raises(InputError, match="rope_theta"):
            exported(path, export_format, tmp_path / "model.bin")
    assert os.listdir(tmp_path) == ["ckpt.pt"]


def test_an_untied_bin_has_a_negative_vocabulary_and_comes_back_if_it_is_complete(tmp_path):
    path = random_checkpoint(tmp_path / "ckpt.pt", tie_embeddings=False)
    file = exported(path, "llama2c", tmp_path / "m.bin")
    whole = Path(file).read_bytes()
    assert struct.unpack("<7i", whole[:28])[5] == -96
    again = load_checkpoint(exported(file, "ckpt", tmp_path / "b.pt"))["model"]
    assert all(torch.equal(w, again[name]) for name, w in load_checkpoint(path)["model"].items())
    for content in (whole[:-4], whole[:30], b"", whole + b"1234", b"PK\3\4" + whole):
        Path(file).write_bytes(content)
        with pytest.raises(InputError, match="m.bin is not"):
            export.load_weights(file)


@needs_shared
@pytest.mark.parametrize("export_format", ["gguf", "gguf_q8_0"])
def test_gguf_holds_every_tensor_and_the_tokenizer(tmp_path, export_format):
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(exported(STORIES260K, export_format, tmp_path / "model.gguf", TOK512))
    args, weights, tok, _ = export.load_weights(STORIES260K, TOK512)
    found = {t.name: t for t in reader.tensors}
    for ours, _, theirs in export.weight_names(args):
        w = weights[ours]
        t = found.pop(theirs)
        kind = "F32" if w.dim() == 1 else "F16" if export_format == "gguf" or w.shape[1] == 172 else "Q8_0"
        assert (t.tensor_type.name, list(t.shape)) == (kind, list(w.shape)[::-1]), ours
        error = np.abs(gguf.quants.dequantize(t.data, t.tensor_type).reshape(w.shape) - w.numpy()).max()
        assert error <= {"F32": 0, "F16": 2**-11, "Q8_0": 0.5 / 127 + 2**-11}[kind] * w.abs().max(), ours
    assert not found  # a tied output is not there twice
    meta = {k: f.contents() for k, f in reader.fields.items()}
    assert meta["general.architecture"] == meta["tokenizer.ggml.model"] == "llama"
    assert meta["tokenizer.ggml.tokens"] == [tok.piece(i) for i in range(512)]
    assert meta["tokenizer.ggml.scores"] == [tok.sp.get_score(i) for i in range(512)]
    assert meta["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert [meta[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot")] == [1, 2, 1]
    assert (meta["llama.attention.head_count_kv"], meta["llama.feed_forward_length"]) == (4, 172)


def test_gguf_of_a_byte_level_tokenizer_has_merges_and_the_template(tok, tmp_path):
    gguf = pytest.importorskip("gguf")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words + 3)
    reader = gguf.GGUFReader(exported(checkpoint, "gguf", tmp_path / "model.gguf"))
    meta = {k: f.contents() for k, f in reader.fields.items()}
    assert (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert meta["tokenizer.ggml.tokens"][: tok.n_words] == [tok.piece(i) for i in range(tok.n_words)]
    types = meta["tokenizer.ggml.token_type"]
    assert types[:6] == [3, 3, 3, 3, 3, 1] and types[-3:] == [5, 5, 5]  # ids that no piece has
    assert meta["tokenizer.ggml.merges"][0].count(" ") == 1
    assert meta["tokenizer.chat_template"] == tok.template


def test_an_export_replaces_nothing_but_an_export(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt")
    for _ in range(2):
        exported(checkpoint, "hf", tmp_path / "hf")
    thesis = tmp_path / "hf" / "thesis.tex"
    thesis.write_text("years of work")
    before = Path(checkpoint).read_bytes()
    monkeypatch.setattr(export, "checkpoint", checkpoint)
    for export_format, out, reason in (
        ("hf", tmp_path / "hf", "thesis.tex"),
        ("ckpt", f"{tmp_path}/../{tmp_path.name}/ckpt.pt", "the source itself"),
        ("hf", thesis, "is a file"),
        ("ckpt", tmp_path, "is a folder"),
    ):
        monkeypatch.setattr(export, "export_format", export_format)
        monkeypatch.setattr(export, "out", str(out))
        with pytest.raises(InputError, match=reason):
            export.main()
    assert thesis.exists() and Path(checkpoint).read_bytes() == before


def command(module, checkpoint, out, *options):
    """extras.export or extras.page as a command, in this process."""
    script = {"export": "extras/export.py", "page": "extras/page/__main__.py"}[module]
    run_here(script, f"--checkpoint={checkpoint}", f"--out={out}", *options)


FORMATS = ("hf", "llama2c", "llama2c_q80", "gguf", "gguf_q8_0", "page")


def refused_formats(checkpoint, folder):
    """{format: why} of those that the checkpoint cannot be exported to; nothing is written then."""
    refused = {}
    for name in FORMATS:
        options = [] if name == "page" else [f"--export_format={name}"]
        try:
            command("page" if options == [] else "export", checkpoint, folder / name / "new", *options)
        except InputError as error:
            refused[name] = str(error)
            assert not list((folder / name).glob("*"))
    return refused


LLAMA_CPP, RUN_C = "gguf gguf_q8_0", "llama2c llama2c_q80"


@needs_shared
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
    ({"pad_id": 1, "bos_id": 2, "eos_id": 3}, RUN_C),
])  # fmt: skip
def test_a_tokenizer_goes_only_where_it_gives_the_same_ids(tmp_path, options, refused):
    for package in ("gguf", "transformers"):
        pytest.importorskip(package)
    tok = Tokenizer(train_sentencepiece(tmp_path, **options))
    checkpoint = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=tok.n_words)
    assert set(refused_formats(checkpoint, tmp_path)) == set(refused.split())


@pytest.mark.parametrize("part, change, reason", [
    ("pre_tokenizer", {"add_prefix_space": True}, "a space before each text"),
    ("pre_tokenizer", {"use_regex": False}, "words without a pattern"),
    ("pre_tokenizer", {"type": "Digits", "individual_digits": True}, "the pre-tokenizer Digits"),
    ("model", {"ignore_merges": True}, "ignore_merges"), ("model", {"dropout": 0.5}, "dropout"),
    ("normalizer", {"type": "Lowercase"}, "the normalizer Lowercase"),
])  # fmt: skip
def test_a_byte_level_tokenizer_that_is_not_ours_is_refused_by_name(tok, tmp_path, part, change, reason):
    pytest.importorskip("gguf")
    state = tok.state()
    saved = json.loads(state["files"]["tokenizer.json"])
    saved[part] = (saved[part] or {}) | change
    state["files"] = state["files"] | {"tokenizer.json": json.dumps(saved).encode()}
    refused = refused_formats(random_checkpoint(tmp_path / "c.pt", state, vocab_size=600), tmp_path)
    assert set(refused) == set(FORMATS) - {"hf"}
    assert all(reason in refused[name] for name in ("gguf", "gguf_q8_0", "page"))
    assert "--export_format=hf" in refused["gguf"]


@needs_shared
def test_ids_without_a_piece_are_never_sampled(tmp_path):
    transformers = pytest.importorskip("transformers")
    checkpoint = random_checkpoint(tmp_path / "c.pt", Tokenizer(TOK512).state(), vocab_size=520)
    folder = exported(checkpoint, "hf", tmp_path / "hf")
    assert transformers.AutoConfig.from_pretrained(folder).vocab_size == 520
    suppressed = transformers.GenerationConfig.from_pretrained(folder).suppress_tokens
    assert suppressed == list(range(512, 520))
    again = load_checkpoint(exported(folder, "ckpt", tmp_path / "again.pt"))["model"]
    table = load_checkpoint(checkpoint)["model"]["tok_embeddings.weight"]
    assert torch.equal(again["tok_embeddings.weight"], table)
    data = Path(exported(checkpoint, "llama2c", tmp_path / "m.bin")).read_bytes()
    assert struct.unpack("<7i", data[:28])[5] == 512
    assert np.array_equal(np.frombuffer(data, "<f4", 512 * 48, 28).reshape(512, 48), table[:512])
    command("page", checkpoint, tmp_path / "p.html")
    assert '"vocab_size": 512' in (tmp_path / "p.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("says_tied", [True, False])
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_tensors_say_whether_the_head_is_tied(tmp_path, says_tied, is_tied):
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    folder = Path(exported(random_checkpoint(tmp_path / "c.pt", tie_embeddings=False), "hf", tmp_path / "hf"))
    state = load_file(folder / "model.safetensors")
    if is_tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes()) | {"tie_word_embeddings": says_tied}
    (folder / "config.json").write_text(json.dumps(config))
    command("export", folder, tmp_path / "again.pt", "--export_format=ckpt")
    saved = load_checkpoint(tmp_path / "again.pt")
    model = Transformer.from_checkpoint(saved)
    assert torch.equal(model.output.weight, state["lm_head.weight"])
    assert model.args.tie_embeddings == is_tied
    saved["model_args"]["tie_embeddings"] = True  # a checkpoint can say so, too
    assert torch.equal(Transformer.from_checkpoint(saved).output.weight, state["lm_head.weight"])


@needs_shared
@pytest.mark.parametrize("saved, stop_ids", [([4, 2, 7], [4, 2, 7]), (5, [5]), (None, [2, 1])])
def test_the_ends_of_a_text_are_kept(tmp_path, saved, stop_ids):
    transformers = pytest.importorskip("transformers")
    folder = Path(exported(STORIES260K, "hf", tmp_path / "hf", TOK512))
    (folder / "generation_config.json").unlink()  # then config.json's
    if saved:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": saved}))
    path = tmp_path / "c.pt"
    command("export", folder, path, "--export_format=ckpt", f"--tokenizer={TOK512}")
    assert load_checkpoint(path)["stop_ids"] == stop_ids
    again = exported(str(path), "hf", tmp_path / "again")
    assert transformers.GenerationConfig.from_pretrained(again).eos_token_id == stop_ids
    command("page", path, tmp_path / "p.html")
    assert f'"stop_ids": {stop_ids}' in (tmp_path / "p.html").read_text(encoding="utf-8")


def damaged(folder, kind):
    """What is no model, or one that others have saved in their way."""
    whole = random_checkpoint(folder / "whole.pt", vocab_size=512)
    files = {"config": "config.json", "weights": "model.safetensors", "stops": "generation_config.json"}
    if kind in files:
        path = Path(exported(whole, "hf", folder / kind), files[kind])
        path.write_bytes(path.read_bytes()[:-9])
        return folder / kind
    content = {"cut": Path(whole).read_bytes()[:9999], "text": b"hello", "noise": bytes(range(256)) * 40}
    path = folder / f"{kind}.{'bin' if kind == 'noise' else 'pt'}"
    if kind in content:
        path.write_bytes(content[kind])
        return path
    saved = load_checkpoint(whole)
    happy_llm = ModelArgs(dim=128, n_heads=16, n_kv_heads=8, n_layers=2, vocab_size=512)
    new = {
        "optimizer": {**saved, "optimizer": {"state": {}}, "iter_num": 3, "best_val_loss": torch.ones(())},
        "compiled": {**saved, "model": {f"_orig_mod.{k}": w for k, w in saved["model"].items()}},
        "happy-llm": Transformer(happy_llm).state_dict(),
        "nanoGPT": {"model": {"transformer.wte.weight": torch.zeros(4, 4)}, "model_args": {"n_head": 2}},
        "other": {"weights": 1}, "list": [1], "no files": {**saved, "tokenizer": {"kind": "tokenizers"}},
        "ends": {**saved, "stop_ids": "abc"},
    }  # fmt: skip
    if kind in new:
        torch.save(new[kind], path)
    return path


@needs_shared
@pytest.mark.parametrize("kind, reason", [
    ("optimizer", ""), ("compiled", ""), ("happy-llm", ""), ("nanoGPT", "nanoGPT"), ("cut", "cannot be read"),
    ("text", "cannot be read"), ("other", "no model of this kind"), ("list", "no model of this kind"),
    ("noise", "its header describes no model"), ("config", "config.json is broken"),
    ("weights", "the weights cannot be read"), ("stops", "generation_config.json is broken"),
    ("nowhere", "there is no checkpoint"), ("no files", "none that can be read"),
    ("ends", "no token ids"),
])  # fmt: skip
def test_what_others_wrote_loads_or_is_refused_in_one_sentence(tmp_path, kind, reason):
    pytest.importorskip("transformers")
    source = damaged(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))
    for module, options in (("export", ["--export_format=ckpt"]), ("page", [])):
        options += [] if kind == "no files" else [f"--tokenizer={TOK512}"]
        if not reason:
            command(module, source, tmp_path / module, *options)
            continue
        with pytest.raises(InputError, match=reason) as raised:
            command(module, source, tmp_path / module, *options)
        assert "\n" not in str(raised.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_writes_nothing_outside_its_folder(tok, tmp_path):
    pytest.importorskip("transformers")
    evil = {"../evil.py": b"1", f"{tmp_path}/evil.py": b"2", "evil.py": b"3"}
    state = {"kind": "tokenizers", "files": {**tok.files, **evil}}
    checkpoint = random_checkpoint(tmp_path / "evil.pt", state, vocab_size=tok.n_words)
    command("export", checkpoint, tmp_path / "hf", "--export_format=hf")
    assert not list(tmp_path.rglob("evil.py")) and (tmp_path / "hf" / "tokenizer.json").exists()


def test_an_export_to_a_link_fills_its_folder_and_a_failed_one_leaves_the_old(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt")
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to("big")
    for _ in range(2):
        command("export", checkpoint, tmp_path / "link", "--export_format=hf")
    files = {path: path.read_bytes() for path in (tmp_path / "big").iterdir()}
    assert (tmp_path / "link").is_symlink() and tmp_path / "big" / "model.safetensors" in files
    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", lambda *args: [][0])
    for out in ("link", "new"):
        with pytest.raises(IndexError):
            command("export", checkpoint, tmp_path / out, "--export_format=hf")
    assert {path: path.read_bytes() for path in (tmp_path / "big").iterdir()} == files
    assert sorted(os.listdir(tmp_path)) == ["big", "ckpt.pt", "link"]
    (tmp_path / "ckpt_link").symlink_to("ckpt.pt")
    for module, options in (("export", ["--export_format=gguf"]), ("page", [])):
        for out, reason in (
            ("ckpt_link", "the source itself"),
            ("ckpt.pt/p", "no folder"),
            ("big", "a folder"),
        ):
            with pytest.raises(InputError, match=reason):
                command(module, checkpoint, tmp_path / out, *options)


@needs_shared
def test_the_tokenizer_of_llama2c_overwrites_no_other(tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(b"Llama's")
    options = (f"--tokenizer={TOK512}", "--export_format=llama2c")
    for _ in range(2):
        command("export", STORIES260K, tmp_path / "story.bin", *options)
    written = sorted(os.listdir(tmp_path))
    assert written == ["story.bin", "story.tokenizer.bin", "tokenizer.bin"]
    with pytest.raises(InputError, match="tokenizer.bin is there already"):
        command("export", STORIES260K, tmp_path / "model.bin", *options)
    assert (tmp_path / "tokenizer.bin").read_bytes() == b"Llama's" and sorted(os.listdir(tmp_path)) == written


@pytest.mark.parametrize("export_format, package", [("gguf", "gguf"), ("hf", "transformers")])
def test_optional_packages_are_asked_for_by_name(tok, tmp_path, monkeypatch, export_format, package):
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(InputError, match=f"pip install {package}"):
        exported(checkpoint, export_format, tmp_path / "out")
