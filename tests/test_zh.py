"""The Chinese track: texts come back, digits are tokens, sums are right, the exam is held out."""

import io
import itertools
import json
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
    HERE, assistant, flags, prepare, random_checkpoint,
    read_rows, run, run_here, system, user, write_rows,
)  # fmt: skip

pytest_plugins = ("tests.fixtures",)
NUMERAL = "[零一二三四五六七八九十两]+"
BENDABLE = ("你好，世界！（１２３）", "10²=100", "①买菜②做饭", "ｆｕｌｌ－ｗｉｄｔｈ", "㎏㈱")


@pytest.fixture(scope="module")
def sum_data(tmp_path_factory):
    """A small corpus of synthetic sums: the files of synthesize, chunks, messages, and two tokenizers."""
    folder = str(tmp_path_factory.mktemp("sums"))
    args = (f"--data_dir={folder}", "--num_texts=400", "--num_chats=600")
    run_here("prepare_data.py", "synthesize", *args)
    for command in ("pretrain", "sft"):
        run_here("prepare_data.py", command, f"--data_dir={folder}")
    chunks = f"--data_path={folder}/seq_monkey_datawhale.jsonl"
    for name, option in (("k", "--split_digits"), ("nfkc", "--normalizer=nfkc")):
        run_here("train_tokenizer.py", chunks, f"--save_dir={folder}/{name}", "--vocab_size=400", option)
    return folder


# --- the tokenizer


def test_every_text_comes_back_unless_nfkc_is_asked_for(tok, sum_data):
    nfkc = Tokenizer(f"{sum_data}/nfkc")
    for text in BENDABLE:
        assert tok.normalize(text) == tok.decode(tok.encode(text)) == text
        assert nfkc.decode(nfkc.encode(text)) == nfkc.normalize(text) != text


def test_split_digits_makes_each_digit_a_token(sum_data):
    tok = Tokenizer(f"{sum_data}/k")
    pieces = [tok.decode([i]) for i in tok.encode("五十二加二十一等于七十三。4096")]
    digits = list("五十二二十一七十三4096")
    assert [piece for piece in pieces if re.search("[零一二三四五六七八九十0-9]", piece)] == digits
    merged = Tokenizer(f"{sum_data}/nfkc")  # without the option, some numbers are one token
    assert any(re.search("[零一二三四五六七八九十]{2}", merged.decode([i])) for i in range(261, 400))


def test_the_tutorials_calls_work_and_show_readable_tokens(sum_data, tmp_path, capsys):
    path = f"{sum_data}/seq_monkey_datawhale.jsonl"
    train_tokenizer.train_tokenizer(data_path=path, save_dir=f"{tmp_path}/k", vocab_size=350)
    train_tokenizer.eval_tokenizer(f"{tmp_path}/k")
    said = capsys.readouterr().out
    for title in ("Tokenizer基本信息", "聊天模板测试", "编码解码测试", "特殊token处理"):
        assert f"=== {title} ===" in said
    assert "Vocab size: 350" in said and said.count("matches original: True") == 3
    longest = re.search("The longest Chinese tokens: (.*)", said).group(1).split()
    assert longest == sorted(longest, key=len, reverse=True) and "等于" in longest
    tok = Tokenizer(f"{tmp_path}/k")
    assert "'等于'" in [tok.readable(i) for i in tok.encode("加等于")]
    assert tok.readable(tok.encode("鑫")[0]) == tok.piece(tok.encode("鑫")[0])  # a byte has no text


def test_llama_cpps_rules_give_the_same_ids_unless_nfkc_warns(zh, tok, sum_data, tmp_path, capsys):
    """llama.cpp's "gpt-2" rules, on what the GGUF file holds: cut, spell in bytes, merge by rank."""
    gguf = pytest.importorskip("gguf")
    texts = [*BENDABLE, "It's  3 o'clock,\n\n we'll see 10² tabs\t"]
    texts += [row["text"] for row in read_rows(zh / "chunks.jsonl")[:200]]
    for ours, bends in ((tok, False), (Tokenizer(f"{sum_data}/nfkc"), True)):
        checkpoint = random_checkpoint(tmp_path / "ckpt.pt", ours.state(), vocab_size=ours.n_words + 3)
        capsys.readouterr()
        out = tmp_path / f"{bends}.gguf"
        run_here("extras/export.py", "--export_format=gguf", f"--checkpoint={checkpoint}", f"--out={out}")
        assert ("does not: full-width forms differ" in capsys.readouterr().out) == bends
        fields = gguf.GGUFReader(out).fields.items()
        meta = {key.removeprefix("tokenizer."): field.contents() for key, field in fields}
        assert (meta["ggml.model"], meta["ggml.pre"]) == ("gpt2", "gpt-2")
        assert meta["chat_template"] == ours.template
        types = meta["ggml.token_type"]
        assert types[:6] == [3, 3, 3, 3, 3, 1] and types[-3:] == [5, 5, 5]  # ids that no piece has
        vocab = {piece: i for i, piece in enumerate(meta["ggml.tokens"])}
        merges = [tuple(merge.split(" ")) for merge in meta["ggml.merges"]]
        theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        assert all(theirs.encode(text).ids == ours.encode(text) for text in texts) != bends


# --- the corpora


def value_of(numeral):
    """Independent of the generator: 四十二 -> 42."""
    digits = "零一二三四五六七八九"
    tens, ten, ones = numeral.rpartition("十")
    return bool(ten) * 10 * digits.index(tens or "一") + digits.index(ones or "零")


def last_number(text):
    return value_of(re.findall(NUMERAL, text)[-1])


def equations_in(text):
    """Each (a, op, b, c) that a text states, in whatever words."""
    number = f"({NUMERAL})"
    ways = {
        "+": (f"{number}加上?{number}(?:等于|是){number}", f"{number}与{number}的和是{number}",
              f"有{number}[^，。]*，又(?:买了|飞来){number}[^，。]*，一共有{number}"),
        "-": (f"{number}减去?{number}(?:等于|是){number}", f"{number}与{number}的差是{number}",
              f"有{number}[^，。]*，(?:用掉了|飞走了){number}[^，。]*，还剩{number}"),
    }  # fmt: skip
    for op, patterns in ways.items():
        for found in itertools.chain.from_iterable(re.findall(pattern, text) for pattern in patterns):
            a, b, c = (value_of(numeral.replace("两", "二")) for numeral in found)
            yield a, op, b, c


def test_the_synthetic_sums_are_right_and_hold_out_the_exam(sum_data):
    rows = read_rows(f"{sum_data}/synthetic_sums.jsonl")
    chats = [row["conversations"] for row in read_rows(f"{sum_data}/synthetic_sums_chats.json")]
    assert len(rows) == 400 and len(chats) == 600
    answers = [turn["value"] for chat in chats for turn in chat if turn["from"] == "assistant"]
    stated = [e for row in rows for e in equations_in(row["text"])]
    assert len(stated) > 400 * 15
    stated += [e for answer in answers for e in equations_in(answer)]
    for a, op, b, c in stated:
        assert c == (a + b if op == "+" else a - b) and 0 <= min(a, b, c) and max(a, b, c) <= 99
    facts = {tuple(sorted((a, b) if op == "+" else (b, c))) for a, op, b, c in stated}
    asked = {tuple(sorted((a, b) if op == "+" else (b, a - b))) for a, op, b in sums.EXAM}
    assert len(facts) > 500 and not facts & asked
    assert len(sums.EXAM) == 1010 == len(set(sums.EXAM)) and len(sums.LEARNED) == 9090
    texts = [row["text"] for row in rows]  # both question marks are asked with
    for typed in (texts[::2], texts[1::2], ["".join(t["value"] for t in chat[::2]) for chat in chats]):
        ascii_ones = sum("等于几?" in text for text in typed)
        assert ascii_ones > 0.05 * len(typed) and sum("等于几？" in text for text in typed) > ascii_ones
    assert not any("?" in turn["value"] for chat in chats for turn in chat[1::2])  # answers are as before


def test_a_conversation_goes_on_from_the_last_result(sum_data):
    second_questions = 0
    for row in read_rows(f"{sum_data}/synthetic_sums_chats.json"):
        last, turns = None, row["conversations"]
        for question, reply in zip(turns[::2], turns[1::2]):
            asked = re.match(f"再([加减])({NUMERAL})", question["value"])
            if asked:
                second_questions += 1
                number = value_of(asked[2])
                assert last_number(reply["value"]) == last + (number if asked[1] == "加" else -number)
            last = last_number(reply["value"]) if list(equations_in(reply["value"])) else None
    assert second_questions > 200


def test_synthesize_repeats_itself_and_replaces_nothing(sum_data, tmp_path):
    args = ("--num_texts=400", "--num_chats=600")
    run_here("prepare_data.py", "synthesize", f"--data_dir={tmp_path}", *args)
    for name in prepare_data.SYNTHETIC:
        with open(f"{sum_data}/{name}", "rb") as f:
            assert f.read() == (tmp_path / name).read_bytes()
    (tmp_path / prepare_data.SYNTHETIC[0]).unlink()
    before = (tmp_path / prepare_data.SYNTHETIC[1]).read_bytes()
    with pytest.raises(InputError, match="is there already"):
        run_here("prepare_data.py", "synthesize", f"--data_dir={tmp_path}", *args)
    assert (tmp_path / prepare_data.SYNTHETIC[1]).read_bytes() == before


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


def openai(*texts):
    return {"messages": talk(*texts)}


PARTS = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1=?"}]
ALL_OF_ALPACA = {"system": "请有礼貌", "history": [[Q, A]], "instruction": "加", "input": "一", "output": "3"}
SHAPES = {  # name: (the report, the conversation, its messages)
    "all names": ("ShareGPT's", sharegpt(f"用户:{Q}", f"chatgpt:{A}", "User:再加一呢？", "助手:3"), FOUR),
    "ShareGPT with a system": ("ShareGPT's", sharegpt("system:请有礼貌", HUMAN, GPT), POLITE),
    "LLaMA-Factory": ("ShareGPT's", sharegpt(HUMAN, GPT, system="请有礼貌", tools=""), POLITE),
    "minimind": ("minimind's", {"conversations": talk(USER, ASSISTANT)}, TWO),
    "OpenAI": ("OpenAI's", openai("developer:请有礼貌", USER, ASSISTANT), POLITE),
    "an empty system": ("OpenAI's", openai("system: ", USER, ASSISTANT), TWO),
    "text in parts": ("OpenAI's", {"messages": [user(PARTS), assistant(A)]}, TWO),
    "a question at the end": ("ShareGPT's", sharegpt(HUMAN, GPT, "human:谢谢"), TWO),
    "Alpaca": ("shape: instruction, input, output", {"instruction": Q, "input": "", "output": A}, TWO),
    "all of Alpaca": ("Alpaca's shape", ALL_OF_ALPACA, [*POLITE, user("加\n一"), assistant("3")]),
    "prompt": ("a prompt's shape: prompt, response", {"prompt": Q, "response": A, "id": 7}, TWO),
    "completion": ("a prompt's shape: prompt, completion", {"prompt": Q, "completion": A}, TWO),
    "question": ("a question's shape: question, context, answer", {"question": Q, "answer": A}, TWO),
    "OpenHermes": ("ShareGPT's", sharegpt(HUMAN, GPT, system_prompt="请有礼貌"), POLITE),
    "OpenOrca": ("a question's", {"system_prompt": "请有礼貌", "question": Q, "response": A}, POLITE),
    "Dolly": ("Dolly's", {"instruction": "1+", "context": "1=?", "response": A},
              [system(), user("1+\n1=?"), assistant(A)]),
    "firefly": ("firefly's shape: input, target", {"kind": "sum", "input": Q, "target": A}, TWO),
    "ms-swift": ("ModelScope's", {"query": "再加一呢？", "response": "3", "history": [[Q, A]]}, FOUR),
}  # fmt: skip
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_sft_reads_a_shape_and_says_which(tmp_path, capsys, shape, ending):
    said, conversation, messages = SHAPES[shape]
    write_rows(tmp_path / "in.jsonl", [conversation] * 3)
    (tmp_path / "in.json").write_text(json.dumps([conversation] * 3, indent=1))
    prepare("sft", tmp_path / f"in.{ending}", tmp_path / "out.jsonl")
    assert read_rows(tmp_path / "out.jsonl") == [messages] * 3
    printed = capsys.readouterr().out
    assert re.search(f"(?m)^3 conversations in .*{said}", printed) and "left out" not in printed
    assert ("3 questions at the end, without an answer, are dropped" in printed) == ("at the end" in shape)


def test_sft_accounts_for_every_conversation(tmp_path, capsys):
    bad = [chat for chats in LEFT_OUT.values() for chat in chats]
    good = [conversation for _, conversation, _ in SHAPES.values()]
    mixed = random.Random(0).sample([*bad, *good], len(bad) + len(good))
    write_rows(tmp_path / "in.jsonl", mixed)
    prepare("sft", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert len(read_rows(tmp_path / "out.jsonl")) == len(good)
    said = capsys.readouterr().out
    counts = re.findall(r"(?:(?<=out: )|(?<=\), ))(.*?) \((\d+)\)", said)
    assert dict(counts) == {reason: str(len(chats)) for reason, chats in LEFT_OUT.items()}
    assert sum(int(n) for n in re.findall(r"(\d+) conversations in", said)) == len(good)


# --- the exam and the chat


def test_the_exam_counts_one_sentence_as_right(monkeypatch, capsys):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    questions = [(3, "+", 4), (8, "+", 4), (9, "+", 9), (12, "-", 4)]
    replies = ["三加四等于七。", "八加四等于十二", "九加九等于十八。。", "十二减四等于八。"]
    monkeypatch.setattr(exam, "ask_all", lambda generator, chats: replies)
    papers = exam.hold_exam(None, "some", questions, exam.direct)
    right = [replies[0], replies[1] + "。", "九加九等于十八。", replies[3]]
    assert [wanted for _, _, wanted in papers] == right
    said = capsys.readouterr().out
    rows = {name.strip(): (right, n) for name, right, n in re.findall(r"(.*?)(\d+) of +(\d+) right", said)}
    by_kind = {"sums, no carry": ("1", "1"), "sums, carry": ("0", "2"), "differences, carry": ("1", "1")}
    assert rows == {**by_kind, "all": ("2", "4")}


@pytest.fixture
def checkpoint(tok, tmp_path):
    shape = {"vocab_size": tok.n_words, "max_seq_len": 128, "tie_embeddings": False}
    return random_checkpoint(tmp_path / "ckpt.pt", tok.state(), **shape)


def start_chat(monkeypatch, checkpoint, typed, terminal=False):
    """sample.py --chat in this process, with what someone types there."""
    stdin = io.TextIOWrapper(io.BytesIO(typed.encode()))
    stdin.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdin", stdin)
    run_here("sample.py", "--chat", f"--checkpoint={checkpoint}", "--max_new_tokens=8", "--temperature=0")


def test_the_exam_asks_as_the_chat_does(checkpoint):
    generator = TextGenerator(checkpoint)
    questions = ["三加四等于几？", "八十二减五等于几？", "你好", "三加六等于几？"]
    batch = exam.ask_all(generator, [[user(question)] for question in questions])
    settings = (exam.MAX_ANSWER, 0, None, None)
    one_by_one = [Chat(generator, out=io.StringIO()).ask(question, *settings) for question in questions]
    assert batch == one_by_one and len(set(batch)) > 1
    for question in ((20, "+", 30), (50, "-", 7)):
        turns = exam.follow_up(random.Random(0), *question)
        roles = [message["role"] for message in exam.as_messages(turns)]
        assert roles == ["system", "user", "assistant", "user"]
        assert [last_number(reply) for _, reply in turns] == [question[0], sums.result(*question)]


@pytest.mark.parametrize("language", ["zh_CN.UTF-8", "en_US.UTF-8"])
def test_messages_follow_the_language_of_the_terminal(checkpoint, monkeypatch, capsys, language):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LC_MESSAGES", "")
    monkeypatch.setenv("LANG", language)
    monkeypatch.setattr(exam, "ask_all", lambda generator, chats: ["三加四等于七。"] * len(chats))
    papers = exam.hold_exam(None, "questions of the training", [(3, "+", 4), (8, "-", 4)], exam.direct)
    assert papers[0][1] == papers[0][2]
    start_chat(monkeypatch, checkpoint, "/exit\n", terminal=True)
    said = capsys.readouterr().out
    start_chat(monkeypatch, checkpoint, "/exit\n你好\n", terminal=True)
    assert said.endswith(capsys.readouterr().out)  # nothing is answered after it
    chinese = re.findall("训练里的题|加法，不进位  .* 1 /     1 答对|/exit .*退出", said)
    english = re.findall("questions of the training|sums, no carry  .* 1 of     1 right|/exit .*leaves", said)
    assert (len(chinese), len(english)) == ((3, 0) if "zh" in language else (0, 3))
    _, error = run("sample.py", "--checkpoint=none.pt", ok=False)
    first, *second = error.splitlines()
    assert first == "sample.py: no checkpoint none.pt: train.py writes one"
    assert ["docs/tutorial.zh.md" in line for line in second] == [True] * ("zh" in language)


# --- the tutorial's reader

SHAPE = flags(dim=64, n_layers=1)
STEPS = flags(max_iters=2, eval_interval=2, eval_iters=1, warmup_iters=1, batch_size=2, device="cpu")
TOY = {  # a word of a command: options that make the command small; of two that are the same the last counts
    "synthesize": flags(num_texts=400, num_chats=600),
    "train_tokenizer.py": flags(vocab_size=400),
    "pretokenize": flags(workers=1),
    "pretokenize_sft": flags(workers=1),
    "train.py": [*STEPS, *flags(gradient_accumulation_steps=1, compile="false")],
    "--dim=1024": SHAPE,
    "sample.py": flags(max_new_tokens=8),
}


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
