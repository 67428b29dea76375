"""The Chinese track: texts come back, digits are tokens, sums are right, the exam is held out."""

import collections
import io
import itertools
import random
import re
import sys

import pytest
import tokenizers
import torch

import prepare_data
import train_tokenizer
from configurator import InputError
from extras import exam
from extras import synthetic_sums as sums
from extras.chat import Chat
from sample import TextGenerator
from tokenizer import Tokenizer

# isort: off
from tests.fixtures import (
    HERE, assistant, flags, prepare, random_checkpoint, read_bytes,
    read_rows, run, run_here, system, user, write_rows,
)  # fmt: skip

pytest_plugins = ("tests.fixtures",)
NUMERAL = "[零一二三四五六七八九十]+"


@pytest.fixture(scope="module")
def sum_data(tmp_path_factory):
    """A small corpus of synthetic sums: the files of synthesize, chunks, and two tokenizers."""
    folder = str(tmp_path_factory.mktemp("sums"))
    run_here("prepare_data.py", "synthesize", *flags(data_dir=folder, num_texts=400, num_chats=600))
    run_here("prepare_data.py", "pretrain", f"--data_dir={folder}")
    chunks = f"--data_path={folder}/seq_monkey_datawhale.jsonl"
    for name, option in (("k", "--split_digits"), ("nfkc", "--normalizer=nfkc")):
        run_here("train_tokenizer.py", chunks, f"--save_dir={folder}/{name}", "--vocab_size=400", option)
    return folder


def test_split_digits_makes_each_digit_a_token_and_nfkc_changes_texts(sum_data, capsys):
    tok = Tokenizer(f"{sum_data}/k")
    pieces = [tok.decode([i]) for i in tok.encode("五十二加二十一等于七十三。4096")]
    digits = list("五十二二十一七十三4096")
    assert [piece for piece in pieces if re.search("[零一二三四五六七八九十0-9]", piece)] == digits
    train_tokenizer.eval_tokenizer(f"{sum_data}/nfkc")
    assert "Decoded:  '你好,世界!(123)'\nDecoded text matches original: False" in capsys.readouterr().out


def test_the_tutorials_calls_work_and_show_readable_tokens(sum_data, tmp_path, capsys):
    path = f"{sum_data}/seq_monkey_datawhale.jsonl"
    train_tokenizer.train_tokenizer(data_path=path, save_dir=f"{tmp_path}/k", vocab_size=350)
    train_tokenizer.eval_tokenizer(f"{tmp_path}/k")
    tok = Tokenizer(f"{tmp_path}/k")
    train_tokenizer.measure_compression(tok, path)
    said = capsys.readouterr().out
    chars, size = map(float, re.search(r"([\d.]+) characters and ([\d.]+) bytes per token", said).groups())
    assert 2 < size / chars < 3 and chars < 9 and re.search("(.+) of \\1 texts come back exactly", said)
    assert "Vocab size: 350" in said and said.count("matches original: True") == 3
    assert re.search("The longest Chinese tokens: .*等于", said)
    assert "'等于'" in [tok.readable(i) for i in tok.encode("加等于")]
    assert tok.readable(tok.encode("鑫")[0]) == tok.piece(tok.encode("鑫")[0])  # a byte has no text


def test_llama_cpps_rules_give_the_same_ids(zh, tok, tmp_path):
    """llama.cpp's "gpt-2" rules, on what the GGUF file holds: cut, spell in bytes, merge by rank."""
    gguf = pytest.importorskip("gguf")
    checkpoint = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words + 3)
    run_here("extras/export.py", *flags(export_format="gguf", checkpoint=checkpoint, out=tmp_path / "x.gguf"))
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields.items()
    meta = {key.removeprefix("tokenizer."): field.contents() for key, field in fields}
    assert (meta["ggml.model"], meta["ggml.pre"], meta["chat_template"]) == ("gpt2", "gpt-2", tok.template)
    types = meta["ggml.token_type"]
    assert types[:6] == [3, 3, 3, 3, 3, 1] and types[-3:] == [5, 5, 5]  # ids that no piece has
    vocab = {piece: i for i, piece in enumerate(meta["ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["ggml.merges"]]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = ["It's  3 o'clock,\n\n we'll see 10² tabs\t", "你好，世界！（１２３）①买菜"]
    for text in texts + [row["text"] for row in read_rows(zh / "chunks.jsonl")[:200]]:
        assert theirs.encode(text).ids == tok.encode(text)


def questions_in(text):
    """Each (a, op, b) that a text asks for in numbers; those with apples are picked by the same function."""
    ends = "(?:等于[几多]|是多少|得几|呢|。)"
    found = re.findall(f"({NUMERAL})([加减])[上去]?({NUMERAL}){ends}", text)
    return [(sums.NUMBERS[a], "+-"[op == "减"], sums.NUMBERS[b]) for a, op, b in found]


def test_the_synthetic_sums_are_right_and_hold_out_the_exam(sum_data):
    texts = [row["text"] for row in read_rows(f"{sum_data}/synthetic_sums.jsonl")]
    rows = read_rows(f"{sum_data}/synthetic_sums_chats.json")
    chats = [[turn["value"] for turn in row["conversations"]] for row in rows]
    assert len(texts) == 400 and len(chats) == 600
    assert [sums.NAMES[n] for n in (0, 7, 10, 12, 20, 99)] == ["零", "七", "十", "十二", "二十", "九十九"]
    stated = re.findall(f"({NUMERAL})([加减])({NUMERAL})等于({NUMERAL})", "".join([*texts, *sum(chats, [])]))
    for a, op, b, c in stated:
        assert sums.NUMBERS[c] == sums.NUMBERS[a] + sums.NUMBERS[b] * (1 if op == "加" else -1)
    asked = questions_in("".join(texts))
    continued = 0
    for chat in chats:
        for before, question, reply in zip(["", *chat[1::2]], chat[::2], chat[1::2]):
            continued += question.startswith(("再加", "再减"))
            for fact in questions_in(question.replace("再", "".join(re.findall(NUMERAL, before)[-1:]))):
                asked.append(fact)
                assert "等于" not in reply or sums.last_number(reply) == sums.NAMES[sums.result(*fact)]
    assert len(asked) > 400 * 5 and continued > 200 and not set(asked) & set(sums.EXAM)
    assert len(sums.EXAM) == 1010 == len(set(sums.EXAM)) and len(sums.LEARNED) == 9090
    for typed in ("".join(texts[::2]), "".join(texts[1::2]), str(chats)):
        assert 0.2 < typed.count("等于几?") / typed.count("等于几？") < 1  # both question marks


def test_synthesize_repeats_itself_and_replaces_nothing(sum_data, tmp_path):
    args = (f"--data_dir={tmp_path}", "--num_texts=400", "--num_chats=600")
    run_here("prepare_data.py", "synthesize", *args)
    with pytest.raises(InputError, match="is there already"):
        run_here("prepare_data.py", "synthesize", *args, "--seed=1")
    for name in prepare_data.SYNTHETIC:
        assert (tmp_path / name).read_bytes() == read_bytes(f"{sum_data}/{name}")


def test_a_real_corpus_is_taken_before_the_synthetic_one(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "data_dir", str(tmp_path))
    for name in (prepare_data.SYNTHETIC[1], prepare_data.BELLE):
        write_rows(tmp_path / name, [])
        assert prepare_data.io_paths("sft") == (f"{tmp_path}/{name}", f"{tmp_path}/BelleGroup_sft.jsonl")


# --- conversations in the shapes of others

Q, A = "1+1=?", "2"
TWO = [system(), user(Q), assistant(A)]
FOUR = [*TWO, user("再加一呢？"), assistant("3")]
POLITE = [system("请有礼貌"), *TWO[1:]]
HUMAN, GPT, USER, ASSISTANT = (f"human:{Q}", f"gpt:{A}", f"user:{Q}", f"assistant:{A}")


def talk(*texts, speaker="role", text="content"):
    """talk("user:x", "assistant:y") -> [{"role": "user", "content": "x"}, ...]"""
    return [dict(zip((speaker, text), each.split(":"))) for each in texts]


def sharegpt(*texts, **fields):
    return {"conversations": talk(*texts, speaker="from", text="value"), **fields}


PARTS = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1=?"}]
ALL_OF_ALPACA = {"system": "请有礼貌", "history": [[Q, A]], "instruction": "加", "input": "一", "output": "3"}
SHAPES = [  # (whose shape, a conversation, its messages)
    ("BELLE's and ShareGPT's", sharegpt(f"用户:{Q}", f"chatgpt:{A}", "User:再加一呢？", "助手:3"), FOUR),
    ("BELLE's and ShareGPT's", sharegpt("system:请有礼貌", HUMAN, GPT), POLITE),
    ("BELLE's and ShareGPT's", sharegpt(HUMAN, GPT, "human:谢谢"), TWO),  # no answer to the last one
    ("BELLE's and ShareGPT's", sharegpt(HUMAN, GPT, system_prompt="请有礼貌"), POLITE),  # OpenHermes
    ("minimind's", {"conversations": talk(USER, ASSISTANT)}, TWO),
    ("OpenAI's", {"messages": talk("developer:请有礼貌", USER, ASSISTANT)}, POLITE),
    ("OpenAI's", {"messages": talk("system: ", USER, ASSISTANT)}, TWO),
    ("OpenAI's", {"messages": [user(PARTS), assistant(A)]}, TWO),
    ("Alpaca's", {"instruction": Q, "input": "", "output": A}, TWO),
    ("Alpaca's", ALL_OF_ALPACA, [*POLITE, user("加\n一"), assistant("3")]),
    ("a prompt's", {"prompt": Q, "response": A, "id": 7}, TWO),
    ("a prompt's", {"prompt": Q, "completion": A}, TWO),
    ("a question's", {"system_prompt": "请有礼貌", "question": Q, "response": A}, POLITE),  # OpenOrca
    ("Dolly's", {"instruction": "1+", "context": "1=?", "response": A},
     [system(), user("1+\n1=?"), assistant(A)]),
    ("firefly's", {"kind": "sum", "input": Q, "target": A}, TWO),
    ("ModelScope's", {"query": "再加一呢？", "response": "3", "history": [[Q, A]]}, FOUR),
]  # fmt: skip
PROMPT, UNKNOWN = {"prompt": "x", "response": "y"}, "no conversation of a known shape in the fields"
LEFT_OUT = {  # reason: conversations
    "an unknown speaker: function_call": [sharegpt(HUMAN, "function_call:y", "observation:z", GPT)],
    "an unknown speaker: tool_calls": [{"messages": [user("x"), assistant(None) | {"tool_calls": [{}]}]}],
    "an unknown speaker: None": [{"messages": [user("x"), "y"]}],
    "a part that is no text: image_url": [{"messages": [user([{"type": "image_url"}]), assistant("y")]}],
    "no input of user": [{"instruction": "x", "input": wrong, "output": "y"} for wrong in (0, ["z"])],
    "no output of assistant": [{"instruction": "x", "output": ""}, {"instruction": "x", "output": 3}],
    "no history of assistant": [PROMPT | {"history": [["z", None]]}],
    "a history that is no list of pairs": [PROMPT | {"history": h} for h in (5, "ab", ["ab"])],
    "two turns of one speaker in a row: assistant": [sharegpt(HUMAN, GPT, GPT)],
    "a system message after the first turn": [sharegpt(HUMAN, GPT, "system:z", HUMAN, GPT)],
    "an answer without a question": [sharegpt("system:s", GPT, HUMAN, GPT)],
    f"{UNKNOWN} kind, target": [{"target": "x", "kind": "y"}],
    f"{UNKNOWN} messages": [{"messages": messages} for messages in ([], "x", {}, [7])],
    "no conversation, not of text alone, or labelled as a bad answer": [
        "x", 7, None, sharegpt(HUMAN, GPT, image="a.jpg"), PROMPT | {"label": False},
    ],
    "an answer that is marked as not to be learned": [
        {"messages": [user("x"), assistant("y") | no]} for no in ({"weight": 0}, {"train": False})
    ],
}  # fmt: skip


def test_sft_reads_every_shape_and_accounts_for_every_conversation(tmp_path, capsys):
    cases = [(chat, None) for chats in LEFT_OUT.values() for chat in chats]
    cases += [(chat, messages) for _, chat, messages in SHAPES]
    random.Random(0).shuffle(cases)
    write_rows(tmp_path / "in.jsonl", [chat for chat, _ in cases])
    prepare("sft", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert read_rows(tmp_path / "out.jsonl") == [messages for _, messages in cases if messages]
    said = capsys.readouterr().out
    counts = collections.Counter()
    for count, whose in re.findall(r"(?m)^(\d+) conversations in (.*) shape: ", said):
        counts[whose] += int(count)
    assert counts == collections.Counter(whose for whose, _, _ in SHAPES)
    assert "1 questions at the end, without an answer, are dropped" in said
    reasons = re.findall(r"(?:(?<=out: )|(?<=\), ))(.*?) \((\d+)\)", said)
    assert dict(reasons) == {reason: str(len(chats)) for reason, chats in LEFT_OUT.items()}


def test_the_exam_counts_one_sentence_as_right(monkeypatch, capsys):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    questions = [(3, "+", 4), (8, "+", 4), (9, "+", 9), (12, "-", 4)]
    replies = ["三加四等于七。", "八加四等于十二", "九加九等于十八。。", "十二减四等于八。"]
    monkeypatch.setattr(exam, "ask_all", lambda generator, chats: replies)
    papers = exam.hold_exam(None, "exam", questions, exam.direct)
    right = [replies[0], replies[1] + "。", "九加九等于十八。", replies[3]]
    assert [wanted for _, _, wanted in papers] == right
    table = re.findall(r"    (\S.*?) +(\d+) / +(\d+) 答对, ", capsys.readouterr().out)
    assert table == [*zip(["加法，不进位", "减法，退位", "加法，进位", "全部"], "1102", "1124")]


@pytest.fixture
def checkpoint(tok, tmp_path):
    shape = {"vocab_size": tok.n_words, "max_seq_len": 128, "tie_embeddings": False}
    return random_checkpoint(tmp_path / "ckpt.pt", tok.state(), **shape)


def test_the_exam_asks_as_the_chat_does(checkpoint):
    generator = TextGenerator(checkpoint)
    questions = ["三加四等于几？", "八十二减五等于几？", "你好", "三加六等于几？"]
    batch = exam.ask_all(generator, [[user(question)] for question in questions])
    settings = (exam.MAX_ANSWER, 0, None, None)
    one_by_one = [Chat(generator, out=io.StringIO()).ask(question, *settings) for question in questions]
    assert batch == one_by_one and len(set(batch)) > 1
    turns = exam.follow_up(random.Random(0), 50, "-", 7)
    roles = [message["role"] for message in exam.as_messages(turns)]
    assert roles == ["system", "user", "assistant", "user"]
    assert [sums.last_number(reply) for _, reply in turns] == ["五十", "四十三"]


@pytest.mark.parametrize("language", ["zh_CN.UTF-8", "en_US.UTF-8"])
def test_messages_follow_the_language_of_the_terminal(checkpoint, monkeypatch, capsys, language):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LC_MESSAGES", "")
    monkeypatch.setenv("LANG", language)
    stdin = io.TextIOWrapper(io.BytesIO("/exit\n你好\n".encode()))
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)
    run_here("sample.py", "--chat", f"--checkpoint={checkpoint}")
    greeting = "/exit .*退出。" if "zh" in language else "/exit .*leaves."
    assert re.search(greeting + "\n> $", capsys.readouterr().out)  # nothing is answered after it
    _, error = run("sample.py", "--checkpoint=none.pt", ok=False)
    assert ("docs/tutorial.zh.md" in error) == ("zh" in language)


TOY = {  # a word of a command: options that make the command small; of two that are the same the last counts
    "synthesize": flags(num_texts=400, num_chats=600),
    "train_tokenizer.py": flags(vocab_size=400),
    "train.py": flags(max_iters=2, eval_interval=2, eval_iters=1, warmup_iters=1, batch_size=2,
                      gradient_accumulation_steps=1, device="cpu", compile="false"),
    "--dim=1024": flags(dim=64, n_layers=1),
    "sample.py": flags(max_new_tokens=8),
}  # fmt: skip


def test_each_command_for_todays_chapter_runs_at_toy_size(tmp_path, monkeypatch, capsys):
    with open(f"{HERE}/docs/tutorial.zh.md", encoding="utf-8") as f:
        table = re.search(r"(?s)\n## 现行版.*?\n(\|.*?)\n\n", f.read()).group(1)
    table = table.replace("py download", "py synthesize").replace("-m extras.memory", "extras/memory.py")
    commands = [command.split() for command in re.findall("`python ([^`]+)`", table)]
    monkeypatch.chdir(tmp_path)
    for script, *words in commands:
        if "--tokenizer=tokenizer_k" in words:  # with weights alone, as the tutorial saves them
            torch.save(torch.load("output_215m/ckpt.pt")["model"], "pretrain_1024_18_6144.pth")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("你好\n".encode())))
        toy = itertools.chain.from_iterable(TOY.get(word, ()) for word in (script, *words))
        run_here(script, *words, *toy)
    said = capsys.readouterr().out
    assert len(commands) == 13 and said.count("finished: 2 steps") == 2 and said.count("北京大学是") >= 2
