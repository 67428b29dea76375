"""What people bring: encodings, endings, long lines, foreign tokenizers. The right text, or one sentence."""

import json
import random
import shutil

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import tinystories
from configurator import InputError, read_json
from prepare_data import CHAT_TEMPLATE
from reader import read_text
from tinystories import PretokDataset, encode_documents, text_encoder
from tokenizer import Tokenizer

from tests.fixtures import (  # isort: skip
    END, SMALL, START, ZH, assistant, flags, needs_shared, prepare, read_rows, run_here, sentences,
    small_model, train_sentencepiece, user, write_ids, write_rows,
)

pytest_plugins = ["tests.fixtures"]
CHINESE = "今天天气很好，我们一起去公园。"
ROW = json.dumps({"text": CHINESE}, ensure_ascii=False) + "\n"
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


GB = "seems to be gb18030: convert it, .*--encoding=gb18030"
READ = {  # file: (bytes, the texts that are read; or what the refusal says)
    "A.JSONL": (ROW.encode() * 2, [CHINESE] * 2), "lines.json": (ROW.encode() * 2, [CHINESE] * 2),
    "A.Json": (f"[{ROW.strip()}]".encode(), [CHINESE]), "object.json": (b'{\n "text": "one"\n}', ["one"]),
    "pretty.json": (b'[\n {\n  "text": "one"\n },\n "two"\n]', ["one", "two"]),
    "no_ending": (CHINESE.encode(), [CHINESE]), "list": (f"[{ROW}]".encode(), [CHINESE]),
    "A.TXT": (b"one\r\n<|endoftext|>two<s>", ["one", "two<s>"]), "mark.txt": (b"\xef\xbb\xbfA", ["A"]),
    "joined.jsonl": (ROW.encode("utf-8-sig") * 2, [CHINESE] * 2), "none.jsonl": (b"\n \n", "nothing to"),
    "deep.jsonl": (b"[" * 2000 + b'\n{"text": ' + b"9" * 5000 + b"}\n" + ROW.encode(), [CHINESE]),
    "gb.txt": (CHINESE.encode("gb18030"), GB), "gb.json": (f"[{ROW}]".encode("gbk"), GB),
    "16.jsonl": ((ROW * 2).encode("utf-16"), "not utf-8, but seems to be utf-16: "),
    "16zh.jsonl": (ROW.replace("。", CHINESE * 3).encode("utf-16-le") * 3, "seems to be utf-16-le: "),
    "late.jsonl": (b'{"text": "a plain line"}\n' * 99 + ROW.encode("gb18030"), f"line 100, is .*{GB}"),
    "cyrillic.txt": ("Привет, мир. Это не то.".encode("cp1251"), "not utf-8: convert it"),
    "a.zip": (b"PK\x03\x04\0", "zip: unpack"), "cut.json": (f'[{ROW}, {{"te'.encode(), "broken: .* line 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_every_form_of_a_text_is_read_or_refused_by_its_name(name, tmp_path):
    content, expected = READ[name]
    path = tmp_path / name
    path.write_bytes(content)
    out = tmp_path / "out" / "o.jsonl"
    if isinstance(expected, list):
        prepare("pretrain", path, out)
        assert [row["text"].strip() for row in read_rows(out)] == expected
        return
    with pytest.raises(InputError, match=expected) as error:
        prepare("pretrain", path, out)
    assert str(error.value).count(name) <= 1 and not list(tmp_path.glob("out/*"))


def test_another_encoding_is_read_if_it_is_named_and_is_the_right_one(tmp_path):
    path = tmp_path / "a.txt"
    for encoding in ("gb18030", "GBK", "utf-16", "utf-16-le", "UTF8"):
        path.write_bytes(CHINESE.encode(encoding))
        assert read_text(str(path), encoding) == CHINESE
    for encoding, says in (("utf-16", "leave out"), ("gb18030", "is not gb18030"), ("none", "no such")):
        path.write_bytes(CHINESE.encode() * 2)
        with pytest.raises(InputError, match=says):
            read_text(str(path), encoding)


@needs_shared
@pytest.mark.parametrize("size, encoding, end", [(1024, "gb18030", "\n"), (2048, "utf-8-sig", "")])
def test_a_novel_becomes_a_vocabulary_and_shards_and_comes_back(size, encoding, end, tmp_path, capsys):
    novel = read_text(f"{ZH}/novel.txt")[:40_000].replace("\n", end)
    path, folder = tmp_path / "novel.txt", tmp_path / "d"
    path.write_bytes(novel.encode(encoding))
    options = flags(input_path=path, encoding=encoding.removesuffix("-sig"), data_dir=folder, vocab_size=size)
    run_here("tinystories.py", "pretokenize", *options)
    shards = [np.fromfile(path, "<u2") for path in sorted((folder / f"tok{size}").glob("*.bin"))]
    decoded = Tokenizer(f"{folder}/tok{size}.model").decode(np.concatenate(shards).tolist())
    assert "".join(decoded.split()) == "".join(novel.split())  # it has 2,600 different characters
    assert min(map(len, shards)) > 3000
    capsys.readouterr()
    run_here("tinystories.py", "pretokenize", *options)
    assert "is up to date" in capsys.readouterr().out


def test_the_vocabulary_learns_from_long_lines_and_from_all_parts_but_the_first(tmp_path, capsys):
    rng = random.Random(0)
    words = lambda letters: " ".join("".join(rng.choices(letters, k=3)) for _ in range(2000))  # noqa: E731
    texts = [words("абв")] * 2 + [words("abcd")] * 30 + [words("ξψω") + "。" * 5000] * 4  # 8 to 29 kB each
    path = write_rows(tmp_path / "own.jsonl", [{"body": text} for text in [*texts, {}]])
    options = flags(input_path=path, data_dir=tmp_path / "d", text_key="body", workers=1)
    run_here("tinystories.py", "pretokenize", *options, "--vocab_size=400")
    tok = Tokenizer(f"{tmp_path}/d/tok400.model")
    letters = {letter for i in range(400) for letter in tok.piece(i)}
    assert {*"abcdξψω。"} <= letters and "б" not in letters  # the first part is for validation
    out, err = capsys.readouterr()
    assert "own.jsonl, line 37: no body" in err and "left out: no body (1)" in out
    with pytest.raises(InputError, match="--vocab_size=260 has no room"):
        run_here("tinystories.py", "pretokenize", *options, "--vocab_size=260")


def test_nanogpts_shards_are_read_and_those_that_are_too_short_are_left_out(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(tinystories, "print_once", said.append)
    for name, ids in (("train", range(40, 60)), ("val", range(20))):
        np.array([*ids] * 20, "<u2").tofile(tmp_path / f"{name}.bin")
    parts = {split: PretokDataset(split, 16, 65, str(tmp_path)) for split in ("train", "val")}
    assert parts["train"][0][0].min() == 40 and parts["val"][0][0].max() == 15
    lengths = {"data00": 100, "data01": 5, "data02": 100, "other": 100}
    write_ids(tmp_path / "short", {name: range(length) for name, length in lengths.items()}, 100)
    assert len(PretokDataset("train", 16, 100, f"{tmp_path}/short")) == 6
    assert "data01.bin is shorter than a sequence" in "".join(said)


def test_a_part_without_a_conversation_is_left_out_and_half_a_copy_is_refused(zh, tmp_path):
    chats = [[user("短"), assistant("好" * 40)]] * 300 + [[user("长" * 900), assistant("好")]] * 120
    args = (f"--tokenizer={zh}/tokenizer_k", "--max_seq_len=64", "--workers=1")
    folder = tmp_path / "sft"
    prepare("pretokenize_sft", write_rows(tmp_path / "c.jsonl", chats), folder, *args)
    shards = read_json(folder / "meta.json")["shards"]
    assert 0 in [counts["documents"] for counts in shards.values()]
    assert len(PretokDataset("train", 64, 600, str(folder)))
    (folder / "data00.bin").unlink()  # data01 would become the part to validate on
    with pytest.raises(InputError, match="sft is not as it was written: run pretokenize again"):
        PretokDataset("train", 64, 600, str(folder))


# --- tokenizers of others

BYTES = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
BPE = (models.BPE(unk_token="<unk>"), trainers.BpeTrainer, BYTES)  # a model, its trainer and its options


def save_tokenizer(folder, config=None, model=BPE, html="", **parts):
    """A folder with a tokenizer of those parts, that asks for truncation and padding."""
    model, trainer, options = model
    tk = tokenizers.Tokenizer(model)
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tk.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tk, name, part)
    texts = sentences(random.Random(0), 200) + ["the cat sat on the mat" + html] * 20
    options = {"vocab_size": 500, "special_tokens": list(SPECIAL), "show_progress": False} | options
    tk.train_from_iterator(texts, trainer(**options))
    tk.enable_truncation(8)
    tk.enable_padding(length=12)
    folder.mkdir(exist_ok=True)
    tk.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"} if config is None else config
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


META = {"pre_tokenizer": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}
ADDS_BOS = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
EVERY = {
    "plain": {}, "nfkc": {"normalizer": normalizers.NFKC()}, "adds BOS": {"post_processor": ADDS_BOS},
    "lower case": {"normalizer": normalizers.Lowercase()}, "Llama's": META,
    "merges at random": {"model": (models.BPE(unk_token="<unk>", dropout=0.5), *BPE[1:])},
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_a_folder_gives_its_librarys_ids_and_no_special_token_of_a_text(name, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    path = save_tokenizer(tmp_path / "k", **EVERY[name])
    tok, own = Tokenizer(f"{path}/tokenizer.json"), transformers.AutoTokenizer.from_pretrained(path)
    assert (tok.bos_id, tok.eos_id) == (own.bos_token_id, own.eos_token_id) == (1, 2)
    rng = random.Random(1)
    parts = [*SPECIAL, *"ab  \n\t1<s>|é①，", "the cat", "＜ｓ＞", *sentences(rng, 9)]
    texts = ["".join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(500)]
    own.backend_tokenizer.no_truncation()
    own.backend_tokenizer.no_padding()
    if name == "merges at random":
        own.backend_tokenizer.model.dropout = None
    said, lossy = [], name == "Llama's"  # it has no bytes here
    monkeypatch.setattr(tinystories, "print_once", said.append)
    encode_documents(["the cat", "鑫"], tok, "uint16")
    assert [line.split(": ")[1] for line in said] == ["not every text comes back from its ids"] * lossy
    for text in texts:
        ids = tok.encode(text)
        assert ids == own(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert not {1, 2, 3, 4} & set(ids)
    if not tok.has_chat_format:
        return
    own.chat_template = CHAT_TEMPLATE
    for _ in range(100):  # content that begins with spaces or newlines
        head, tail = ("".join(rng.choices(" \n\tx", k=rng.randint(0, 3))) for _ in "ab")
        chat = [user(head + "hi" + tail), assistant(tail + "ok" + head)]
        want = own.apply_chat_template(chat, return_dict=True)["input_ids"]
        ids, _ = tok.encode_chat(chat)
        assert ids == want and ids.count(START) == ids.count(END) == 2


@pytest.mark.parametrize("config, tokens, ids", [  # two files, and the ids of BOS and EOS in transformers
    ({}, {"bos_token": "<s>", "eos_token": {"content": "</s>"}}, (1, 2)),
    ({"bos_token": None, "eos_token": "<unk>"}, {}, (-1, 0)),
    ({"bos_token": "</s>", "eos_token": "<s>"}, {"bos_token": "<s>"}, (1, 1)),
    ({"bos_token": None}, {"bos_token": "<s>", "eos_token": None}, (1, -1)),
    ({"bos_token": "none of it"}, {}, (-1, -1)),
    ({"bos_token": "<unk>"}, {}, (0, -1)),
])  # fmt: skip
def test_bos_and_eos_are_found_and_one_of_them_stands_between_two_documents(config, tokens, ids, tmp_path):
    path = save_tokenizer(tmp_path, config=config)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    tok = Tokenizer(path)
    assert (tok.bos_id, tok.eos_id) == ids
    if ids == (-1, -1):
        with pytest.raises(InputError, match="neither BOS nor EOS"):
            encode_documents(["a"], tok, "uint16")
        return
    got = np.frombuffer(encode_documents(["a", "b"], tok, "uint16")[0], "<u2").tolist()
    a, b = tok.encode("a"), tok.encode("b")
    assert tok.encode("a", bos=True, eos=True) == [i for i in (ids[0], *a, ids[1]) if i >= 0]
    assert got == ([ids[0], *a, ids[0], *b] if ids[0] >= 0 else [*a, ids[1], *b, ids[1]])


def test_tokenizers_that_cannot_be_right_are_refused(tmp_path):
    unigram = (models.Unigram(), trainers.UnigramTrainer, {"unk_token": "<unk>"})
    for parts in ({**META, "model": unigram}, {**META, "html": " <s>a</s>"}):
        path = save_tokenizer(tmp_path / "u", **parts)
        with pytest.raises(InputError, match="of a text that says so"):  # so does its own library
            Tokenizer(path)
    state = Tokenizer(save_tokenizer(tmp_path / "k")).state()
    evil = {"kind": "tokenizers", "files": {**state["files"], "../pwned.py": b"1", "/tmp/pwned.py": b"1"}}
    assert Tokenizer(evil).state() == state


def test_a_sentencepiece_model_without_a_dummy_prefix_is_encoded_as_it_is(tmp_path):
    tok = train_sentencepiece(tmp_path, add_dummy_prefix=False)
    for text in ("the cat sat", " the  cat ", "<s>a</s>", "猫 sat"):
        ids = np.frombuffer(text_encoder(tok, "uint16")(text), "<u2").tolist()
        assert ids == tok.encode(text) and not {tok.bos_id, tok.eos_id} & set(ids)
    assert tok.decode(ids) == "猫 sat"


def test_happy_llms_checkpoint_and_a_strangers_tokenizer_go_all_the_way(zh, tmp_path, capsys):
    stranger, happy = tmp_path / "stranger", tmp_path / "pretrain_64_3_600.pth"
    shutil.copytree(zh / "tokenizer_k", stranger)
    config = {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}  # as Qwen's
    (stranger / "tokenizer_config.json").write_text(json.dumps(config))
    torch.save(small_model(n_heads=16, n_kv_heads=8, vocab_size=600, max_seq_len=512).state_dict(), happy)
    options = flags(tokenizer=stranger, workers=1, max_seq_len=64)
    prepare("pretokenize_sft", zh / "chats.jsonl", tmp_path / "ids", *options)
    assert "stranger: its chat template differs; chats are written" in capsys.readouterr().err
    options = flags(vocab_source=tmp_path / "ids", init_from=happy, out_dir=tmp_path / "out", max_iters=2)
    run_here("train.py", *SMALL, *options, "--vocab_size=600")
    path = tmp_path / "out" / "last.pt"
    saved = torch.load(path, weights_only=True)
    assert (saved["iter_num"], saved["model_args"]["n_heads"]) == (2, 16)
    for given in ([f"--checkpoint={path}"], [f"--checkpoint={happy}", f"--tokenizer={stranger}"]):
        run_here("sample.py", *given, "--prompt=你好", "--max_new_tokens=4")
        assert "\n你好" in "\n" + capsys.readouterr().out
