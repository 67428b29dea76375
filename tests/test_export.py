"""
extras/export.py, and sample.py on a folder of the transformers library. References are independent:
transformers, the gguf package, llama2.c's own files and its golden text.
"""

import json
import os
import struct

import numpy as np
import pytest
import torch

from checkpoints import build_model, load_checkpoint
from extras import export
from extras import weights as W
from sample import TextGenerator
from tests.fixtures import (
    LLAMA2C,
    SHARED,
    STORIES260K,
    TOK512,
    ZH,
    golden,
    needs_shared,
    random_checkpoint,
    read_bytes,
    read_rows,
    run,
    system,
    user,
)
from tokenizer import Tokenizer

pytest_plugins = ["tests.fixtures"]


def exported(source, format, path):
    export.WRITERS[format](source, str(path))
    return str(path)


def our_logits(path, ids):
    with torch.inference_mode():
        return build_model(load_checkpoint(path)).eval()(ids)[0]


def their_logits(folder, ids):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model) is transformers.LlamaForCausalLM
    with torch.inference_mode():
        return model(ids).logits


# --------------------------------------------------------------------------------------------------------
# out


@pytest.mark.parametrize(
    "shape", [{}, {"tie_embeddings": False, "rope_theta": 5e5, "norm_eps": 1e-6}, {"n_kv_heads": 6}]
)
def test_our_model_computes_what_transformers_llama_computes(tmp_path, shape):
    pytest.importorskip("transformers")
    path = random_checkpoint(tmp_path / "ckpt.pt", **shape)
    folder = exported(W.open_source(path), "hf", tmp_path / "hf")
    ids = torch.randint(0, 96, (2, 64))
    assert (our_logits(path, ids) - their_logits(folder, ids)).abs().max() < 1e-4


def test_rope_rows_are_reordered_within_each_head_and_back():
    w = torch.arange(12.0)[:, None] * torch.ones(1, 3)
    assert W.to_halves(w, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(W.to_pairs(W.to_halves(w, 2), 2), w)


def test_weights_keep_their_dtype(tmp_path):
    path = random_checkpoint(tmp_path / "ckpt.pt", dtype=torch.bfloat16)
    folder = exported(W.open_source(path), "hf", tmp_path / "hf")
    assert {w.dtype for w in W.read_safetensors(os.path.join(folder, "model.safetensors")).values()} == {
        torch.bfloat16
    }
    again = load_checkpoint(exported(W.open_source(folder), "ckpt", tmp_path / "again.pt"))["model"]
    for name, w in load_checkpoint(path)["model"].items():
        assert torch.equal(w, again[name])


@needs_shared
def test_llama2c_export_is_byte_for_byte_the_original(tmp_path):
    run("extras.export", f"--checkpoint={STORIES260K}", f"--tokenizer={TOK512}", "--format=llama2c",
        f"--out={tmp_path}/model.bin")  # fmt: skip
    assert read_bytes(tmp_path / "model.bin") == read_bytes(os.path.join(LLAMA2C, "stories260K.bin"))
    assert read_bytes(tmp_path / "tokenizer.bin") == read_bytes(os.path.join(LLAMA2C, "tok512.bin"))
    assert sorted(os.listdir(tmp_path)) == ["model.bin", "tokenizer.bin"]  # nothing is left over


@needs_shared
def test_q80_export_is_laid_out_as_runq_reads_it(tmp_path):
    source = W.open_source(STORIES260K, TOK512)
    data = read_bytes(exported(source, "llama2c_q80", tmp_path / "q.bin"))
    magic, version, *header, shared, group = struct.unpack("<Ii7iBi", data[:41])
    assert (magic, version, shared) == (0x616B3432, 2, 1)
    assert header == [64, 172, 5, 8, 4, 512, 512] and data[41:256] == bytes(215)
    assert 64 % group == 0 and 172 % group == 0 and group == 4
    at = 256
    names = [n for n, *_ in W.names(source.args)]
    for name in [n for n in names if source.weights[n].dim() == 1]:
        w = source.weights[name].numpy()
        assert np.array_equal(np.frombuffer(data, np.float32, w.size, at), w)
        at += 4 * w.size
    for name in [n for n in names if source.weights[n].dim() == 2]:
        w = source.weights[name].numpy()
        q = np.frombuffer(data, np.int8, w.size, at).reshape(-1, group)
        scale = np.frombuffer(data, np.float32, w.size // group, at + w.size)[:, None]
        assert np.abs(q * scale - w.reshape(-1, group)).max() <= scale.max() * 0.501
        assert (np.abs(q).max(axis=1) == 127).all()
        at += w.size + 4 * (w.size // group)
    assert at == len(data)


def test_llama2c_is_refused_what_its_c_program_has_built_in(tmp_path):
    path = random_checkpoint(tmp_path / "ckpt.pt", rope_theta=5e5)
    with pytest.raises(ValueError, match="rope_theta"):
        exported(W.open_source(path), "llama2c", tmp_path / "model.bin")
    assert os.listdir(tmp_path) == ["ckpt.pt"]


def test_an_untied_bin_has_a_negative_vocabulary_and_comes_back(tmp_path):
    path = random_checkpoint(tmp_path / "ckpt.pt", tie_embeddings=False)
    file = exported(W.open_source(path), "llama2c", tmp_path / "model.bin")
    assert struct.unpack("<7i", read_bytes(file)[:28])[5] == -96
    ids = torch.randint(0, 96, (2, 64))
    assert torch.equal(
        our_logits(exported(W.open_source(file), "ckpt", tmp_path / "b.pt"), ids), our_logits(path, ids)
    )


@pytest.fixture(scope="module")
def stories_hf(tmp_path_factory):
    """stories260K as a folder of transformers'."""
    if not os.path.isdir(SHARED):
        pytest.skip("../shared/data is not there")
    pytest.importorskip("transformers")
    return exported(W.open_source(STORIES260K, TOK512), "hf", tmp_path_factory.mktemp("out") / "hf")


def test_hf_export_computes_and_writes_the_same(stories_hf):
    transformers = pytest.importorskip("transformers")
    ids = torch.randint(0, 512, (2, 256))
    assert (our_logits(STORIES260K, ids) - their_logits(stories_hf, ids)).abs().max() < 1e-4
    model = transformers.AutoModelForCausalLM.from_pretrained(stories_hf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories_hf)
    out = model.generate(**tokenizer("", return_tensors="pt"), max_new_tokens=200, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == golden()
    assert model.generation_config.eos_token_id == [
        2,
        1,
    ]  # a story of llama2.c's ends with the next one's BOS


@pytest.mark.parametrize("name", ["tok512", "tok4096"])
@needs_shared
def test_hf_tokenizer_gives_our_ids(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    tok = Tokenizer(os.path.join(LLAMA2C, f"{name}.model"))
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words)
    theirs = transformers.AutoTokenizer.from_pretrained(
        exported(W.open_source(checkpoint), "hf", tmp_path / "hf")
    )
    texts = [
        s["story"] for s in json.loads(read_bytes(os.path.join(SHARED, "tinystories", "data00.json")))[:500]
    ]
    texts += (
        read_bytes(os.path.join(SHARED, "zh", "seq_monkey_shape.sample.jsonl")).decode().splitlines()[:100]
    )
    texts += [
        "",
        " ",
        "\n",
        "  a   b  ",
        "\ta\n\n b ",
        " \n ",
        "a\u3000b",
        "▁▁a▁ ▁b▁",
        "\r\n",
        "<s>",
        "</s> <unk>",
    ]
    texts += ["aaaaaaaaaaaaaa ......... !!!!!!", "é😀👩‍👩‍👧 naïve ﬁ", "hahahahahahaha mmmmmm"]
    generator = np.random.default_rng(0)
    texts += ["".join(generator.choice(list("aaab .. \n▁ehto!é中"), 30)) for _ in range(500)]
    for text in texts:
        ids = tok.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
        assert theirs(text)["input_ids"] == [tok.bos_id, *ids]
        assert theirs.decode(ids) == tok.decode(ids)


def test_ids_and_templates_are_those_of_transformers(zh):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(str(zh / "tokenizer_k"))
    ours = Tokenizer(str(zh / "tokenizer_k"))
    texts = [row["text"] for row in read_rows(zh / "chunks.jsonl")] + [
        "",
        " a  b ",
        "１２３",
        "<|im_end|>\n",
    ]
    chats = read_rows(zh / "chats.jsonl")
    if os.path.isdir(ZH):
        rows = read_rows(os.path.join(ZH, "seq_monkey_shape.sample.jsonl"))
        texts += [row["text"] for row in rows[:1000]]
    for text in texts:
        assert theirs(text)["input_ids"] == ours.encode(text)
    for chat in chats:
        assert theirs.apply_chat_template(chat, tokenize=False) == ours.render(chat)
        assert theirs(ours.render(chat))["input_ids"] == ours.encode_chat(chat)[0]
        question = theirs.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
        assert question == ours.render(chat[:2], add_generation_prompt=True)


def test_a_chinese_model_chats_through_transformers(tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words, max_seq_len=256)
    folder = exported(W.open_source(checkpoint), "hf", tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [system(), user("你好！今天天气怎么样？")]
    encoded = theirs.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = encoded["input_ids"]
    assert ids[0].tolist() == tok.encode_chat(chat, add_generation_prompt=True)[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    out = model.generate(**encoded, max_new_tokens=8, do_sample=False)
    ours = TextGenerator(checkpoint).stream(ids[0].tolist(), 1, 8, 0.0)
    assert out[0, ids.shape[1] :].tolist() == [new[0] for new in ours]


# --------------------------------------------------------------------------------------------------------
# GGUF


@needs_shared
@pytest.mark.parametrize("format", ["gguf", "gguf_q8_0"])
def test_gguf_holds_every_tensor_and_the_tokenizer(tmp_path, format):
    gguf = pytest.importorskip("gguf")
    source = W.open_source(STORIES260K, TOK512)
    reader = gguf.GGUFReader(exported(source, format, tmp_path / "model.gguf"))
    found = {t.name: t for t in reader.tensors}
    for (ours, _, theirs), (_, w) in zip(W.names(source.args), W.walk(source)):
        t = found.pop(theirs)
        kind = "F32" if w.dim() == 1 else "F16" if format == "gguf" or w.shape[1] == 172 else "Q8_0"
        assert (t.tensor_type.name, list(t.shape)) == (kind, list(w.shape)[::-1]), ours
        error = np.abs(gguf.quants.dequantize(t.data, t.tensor_type).reshape(w.shape) - w.numpy()).max()
        assert error <= {"F32": 0, "F16": 2**-11, "Q8_0": 0.5 / 127 + 2**-11}[kind] * w.abs().max(), ours
    assert not found  # a tied output is not there twice
    meta = {k: f.contents() for k, f in reader.fields.items()}
    tok = source.tokenizer
    assert meta["general.architecture"] == "llama" and meta["tokenizer.ggml.model"] == "llama"
    assert meta["tokenizer.ggml.tokens"] == [tok.piece(i) for i in range(512)]
    assert meta["tokenizer.ggml.scores"] == [tok.sp.get_score(i) for i in range(512)]
    assert (
        meta["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6] and meta["tokenizer.ggml.token_type"][-1] == 1
    )
    assert (meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert (meta["llama.attention.head_count_kv"], meta["llama.feed_forward_length"]) == (4, 172)


def test_gguf_of_a_byte_level_tokenizer_has_merges_and_the_template(tok, tmp_path):
    gguf = pytest.importorskip("gguf")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words + 3)
    reader = gguf.GGUFReader(exported(W.open_source(checkpoint), "gguf", tmp_path / "model.gguf"))
    meta = {k: f.contents() for k, f in reader.fields.items()}
    assert (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert meta["tokenizer.ggml.tokens"][: tok.n_words] == [tok.piece(i) for i in range(tok.n_words)]
    assert meta["tokenizer.ggml.token_type"][:6] == [3, 3, 3, 3, 3, 1]
    assert meta["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]  # ids that no piece has
    assert meta["tokenizer.ggml.merges"][0].count(" ") == 1
    assert meta["tokenizer.chat_template"] == tok.template


# --------------------------------------------------------------------------------------------------------
# in


@needs_shared
def test_a_bin_of_llama2c_becomes_a_checkpoint_that_writes_the_golden_text(tmp_path):
    bin_file = os.path.join(LLAMA2C, "stories260K.bin")
    knobs = (f"--checkpoint={bin_file}", "--format=ckpt", f"--tokenizer={TOK512}", f"--out={tmp_path}/c.pt")
    run("extras.export", *knobs)
    out, _ = run("sample.py", f"--checkpoint={tmp_path}/c.pt", "--temperature=0", "--max_new_tokens=200")
    assert out.rstrip("\n") == golden()


@pytest.fixture(scope="module")
def their_llama(tmp_path_factory):
    """A random LlamaForCausalLM in several files: 9 heads, 3 for keys and values, untied, its own theta."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=72, intermediate_size=100, num_hidden_layers=3, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=64, rms_norm_eps=2e-6, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.dim() == 2 else 1.0)
    folder = str(tmp_path_factory.mktemp("llama"))
    model.save_pretrained(folder, max_shard_size="100KB")
    assert os.path.exists(os.path.join(folder, "model.safetensors.index.json"))
    return folder


def test_a_llama_of_transformers_comes_in_and_goes_out_unchanged(tmp_path, their_llama):
    transformers = pytest.importorskip("transformers")
    path = exported(W.open_source(their_llama), "ckpt", tmp_path / "ckpt.pt")
    saved = load_checkpoint(path)["model_args"]
    assert (saved["n_kv_heads"], saved["rope_theta"], saved["norm_eps"]) == (3, 100000.0, 2e-6)
    ids = torch.randint(0, 128, (2, 64))
    assert (our_logits(path, ids) - their_logits(their_llama, ids)).abs().max() < 1e-4
    folder = exported(W.open_source(path), "hf", tmp_path / "hf")
    before, after = (transformers.AutoModelForCausalLM.from_pretrained(f) for f in (their_llama, folder))
    for key in (
        "rope_parameters",
        "rms_norm_eps",
        "num_key_value_heads",
        "tie_word_embeddings",
        "intermediate_size",
    ):
        assert getattr(before.config, key) == getattr(after.config, key)
    after = after.state_dict()
    assert all(torch.equal(w, after[name]) for name, w in before.state_dict().items())


@needs_shared
@pytest.mark.parametrize(
    "folder, reason", [("tiny_llama3", r"rope_scaling \(llama3\)"), ("tiny_qwen3", "qwen3")]
)
def test_other_architectures_are_refused_by_name(folder, reason):
    with pytest.raises(ValueError, match=reason):
        W.open_source(os.path.join(SHARED, "hf", folder))


@pytest.mark.parametrize("key, value", [
    ("attention_bias", True), ("mlp_bias", True), ("head_dim", 16), ("hidden_act", "gelu"),
    ("rope_scaling", {"type": "linear", "factor": 2.0}), ("quantization_config", {"bits": 4}),
])  # fmt: skip
def test_what_model_py_cannot_represent_is_refused_by_name(tmp_path, key, value):
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=key):
        W.open_source(str(tmp_path))


def test_files_that_are_not_whole_are_refused_by_name(tmp_path):
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt")
    folder = exported(W.open_source(checkpoint), "hf", tmp_path / "hf")
    bin_file = exported(W.open_source(checkpoint), "llama2c", tmp_path / "m.bin")
    for path in (os.path.join(folder, "model.safetensors"), bin_file):
        whole = read_bytes(path)
        for length in (len(whole) - 4, 30, 0):
            with open(path, "wb") as f:
                f.write(whole[:length])
            with pytest.raises(ValueError, match=os.path.basename(path)):
                W.open_source(folder if "safetensors" in path else path)
    with open(path, "wb") as f:
        f.write(whole + b"1234")
    with pytest.raises(ValueError, match="not whole"):
        W.open_source(path)


def test_an_export_replaces_nothing_but_an_export(tmp_path):
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt")
    folder = tmp_path / "hf"
    for _ in range(2):
        exported(W.open_source(checkpoint), "hf", folder)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.tex"):
        exported(W.open_source(checkpoint), "hf", folder)
    assert (folder / "thesis.tex").exists()


# --------------------------------------------------------------------------------------------------------
# the transformers library


@needs_shared
def test_sample_py_reads_a_folder_of_transformers(stories_hf):
    generator = TextGenerator(stories_hf)
    assert generator.sample("", 1, 200, temperature=0.0) == [golden()]
    ours = TextGenerator(STORIES260K, TOK512)
    settings = {"max_new_tokens": 40, "temperature": 0.9, "top_k": 20, "top_p": 0.8}
    assert generator.sample("Lily", 2, **settings) == ours.sample(
        "Lily", 2, **settings
    )  # the knobs mean the same


@pytest.mark.parametrize("script, package", [("extras.train_hf", "transformers"), ("extras.export", "gguf")])
def test_optional_packages_are_asked_for_by_name(tok, tmp_path, script, package):
    """A folder `package` that raises ImportError stands in for a package that is not installed."""
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words)
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"sys.modules['{package}'] = None\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == '{package}' else find(name, *a)\n"
    )
    knobs = ("--format=gguf", f"--checkpoint={checkpoint}", f"--out={tmp_path}/m.gguf")
    env = os.environ | {"PYTHONPATH": str(hide)}
    said = run(script, *(knobs if script == "extras.export" else ()), ok=False, env=env)[1]
    assert len(said.splitlines()) == 1 and f"pip install {package}" in said
