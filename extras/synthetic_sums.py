"""
Write a small Chinese corpus: sums and differences up to 99, spelled out, for a machine without a network.

    python -m extras.synthetic_sums         # print a text, and some conversations
    python -m extras.synthetic_sums 7       # with another seed

prepare_data.py synthesize stores what texts() and chats() yield, one JSON object a line, in the shapes of
seq-monkey and BELLE. The same seed gives the same corpus on every machine.

A chat model of less than a million parameters knows nothing, so most of its answers are neither right nor
wrong. Here each question has one right answer, and a program can mark it (extras/exam.py). Nobody should pass
the exam by memory: a tenth of the number facts is in neither corpus. A fact is a + b = c in all its four
forms (b + a = c, c - a = b, c - b = a), so none of them gives another away.

What a child knows by heart is told in one sentence: 七加五等于十二, 三十加四十等于七十. Everything else is
calculated from that in steps, as a child does it on paper; the model writes the steps before the result:

    三十七加四十五等于几？    七加五等于十二，三十加四十等于七十，七十加十二等于八十二。
"""

import random
import re
import sys

DIGITS = "零一二三四五六七八九"
NAMES = [(DIGITS[n // 10] if n > 19 else "") + "十" * (n > 9) + DIGITS[n % 10] for n in range(100)]
NAMES = [name[:-1] if len(name) > 1 and name[-1] == "零" else name for name in NAMES]  # 二十, not 二十零
NUMBERS = {name: n for n, name in enumerate(NAMES)}
LARGEST = 99

FACTS = [(a, b) for a in range(LARGEST + 1) for b in range(a, LARGEST + 1 - a)]  # a + b, a <= b
IN_STEPS = {(a, b) for a, b in FACTS if b > 9 and a % 10 and b % 10}  # the others are known by heart
HELD_OUT = frozenset(random.Random(0).sample(sorted(IN_STEPS), len(FACTS) // 10))

# {a} and {b} are numbers; {x} and {y} the same before a measure word, where 2 is 两, not 二.
ASK = {
    "+": ["{a}加{b}等于几？", "{a}加{b}等于几？", "{a}加{b}等于多少？", "{a}加{b}是多少？",
          "{a}加上{b}得几？", "请问{a}加{b}等于几？", "算一算：{a}加{b}。", "{a}与{b}的和是多少？",
          "{who}有{x}{thing}，又买了{y}{m}，一共有几{m}？", "树上有{x}只鸟，又飞来{y}只，一共有几只？"],
    "-": ["{a}减{b}等于几？", "{a}减{b}等于几？", "{a}减{b}等于多少？", "{a}减{b}是多少？",
          "{a}减去{b}得几？", "请问{a}减{b}等于几？", "算一算：{a}减{b}。", "{a}与{b}的差是多少？",
          "{who}有{x}{thing}，用掉了{y}{m}，还剩几{m}？", "树上有{x}只鸟，飞走了{y}只，还剩几只？"],
}  # fmt: skip
ASK_ON = {
    "+": ["再加{b}呢？", "再加上{b}呢？", "再加{b}是多少？"],
    "-": ["再减{b}呢？", "再减去{b}呢？", "再减{b}是多少？"],
}
TOO_LARGE = "{a}加{b}超过九十九，我还没有学过。"
TOO_SMALL = "{a}比{b}小，不够减。"
WHO = ["小明", "小红", "妈妈", "爷爷", "老师"]
THINGS = {"个": ["苹果", "鸡蛋", "气球"], "本": ["书", "练习本"], "支": ["铅笔"], "块": ["糖"]}
SMALL_TALK = [
    ("你好！", "你好！我会算一百以内的加减法。"),
    ("你好", "你好！我会算一百以内的加减法。"),
    ("你是谁？", "我是一个AI助手，只会算一百以内的加减法。"),
    ("你叫什么名字？", "我还没有名字。我是一个很小的AI助手。"),
    ("你会什么？", "我会算一百以内的加减法，比如三加四等于七。"),
    ("你会做什么？", "我会算一百以内的加减法，比如三加四等于七。"),
    ("你真聪明！", "谢谢！我只是练习得多。"),
    ("谢谢", "不客气！"),
    ("谢谢你！", "不客气！"),
    ("再见", "再见！下次再来考我。"),
    ("再见！", "再见！下次再来考我。"),
    ("今天天气怎么样？", "我不知道，我只会算一百以内的加减法。"),
    ("给我讲个故事吧。", "我不会，我只会算一百以内的加减法。"),
]
USE_WORDS = "请用汉字写数字，比如：三加四等于几？"


def fact(a, op, b):
    """The number fact that a question is a form of: (the smaller part, the larger part)."""
    parts = (a, b) if op == "+" else (b, a - b)
    return min(parts), max(parts)


def result(a, op, b):
    return a + b if op == "+" else a - b


def questions():
    """All (a, op, b) with numbers and results from 0 to 99."""
    for a in range(LARGEST + 1):
        yield from ((a, "+", b) for b in range(LARGEST + 1 - a))
        yield from ((a, "-", b) for b in range(a + 1))


LEARNED = [question for question in questions() if fact(*question) not in HELD_OUT]
EXAM = [question for question in questions() if fact(*question) in HELD_OUT]
BY_HEART = [question for question in questions() if fact(*question) not in IN_STEPS]
SMALL_FIRST = [(a, op, b) for a, op, b in LEARNED if op == "+" and a < 10 and fact(a, op, b) in IN_STEPS]


def pick(rng):
    """
    A question of the training. Two kinds come more often: those that are known by heart, the basis of the
    others; and 一加四十二, where the tens are the second number's: alone, these are too rare to be learned.
    """
    return rng.choice(rng.choices((LEARNED, BY_HEART, SMALL_FIRST), (0.6, 0.25, 0.15))[0])


def phrase(rng, templates, a, op, b):
    """One of the templates with the numbers filled in. Nobody has 0 apples."""
    if min(a, b) < 1:
        templates = [template for template in templates if "{x}" not in template]
    m = rng.choice(list(THINGS))
    thing = m + rng.choice(THINGS[m])
    x, y = ("两" if n == 2 else NAMES[n] for n in (a, b))
    slots = {"a": NAMES[a], "b": NAMES[b], "x": x, "y": y, "m": m, "thing": thing, "who": rng.choice(WHO)}
    return rng.choice(templates).format(**slots)


def equation(a, op, b):
    return f"{NAMES[a]}{'加' if op == '+' else '减'}{NAMES[b]}等于{NAMES[result(a, op, b)]}"


def answer(a, op, b):
    """The ones, the tens, both together. Where the ones are too few to subtract from, ten more of them."""
    steps = []
    if fact(a, op, b) in IN_STEPS:
        borrowed = 10 if op == "-" and a % 10 < b % 10 else 0
        ones = (a % 10 + borrowed, op, b % 10)
        tens = (a - ones[0], op, b - ones[2])
        steps.append(equation(*ones))
        if tens[0] and tens[2]:
            steps.append(equation(*tens))
        a, op, b = result(*tens), "+", result(*ones)
    return "，".join([*steps, equation(a, op, b)]) + "。"


def texts(rng, count):
    """
    Yield count texts, in turn 15 questions with their answers, and 8 conversations as they are written down,
    in which the speakers are called as in the chat template: so the tokenizer learns these words, too.
    """
    for i in range(count):
        if i % 2:
            turns = [turn for _ in range(8) for turn in conversation(rng)]
            lines = (f"user\n{type_in(q, i)}\nassistant\n{a}\n" for q, a in turns)
            yield "system\n你是一个AI助手\n" + "".join(lines)
        else:
            facts = (pick(rng) for _ in range(15))
            yield "".join(type_in(phrase(rng, ASK[q[1]], *q), i) + answer(*q) for q in facts)


def type_in(question, i):
    """A question as it is typed: in every third text and conversation with the ASCII "?" instead of "？"."""
    return question.replace("？", "?") if i % 3 == 2 else question


def chats(rng, count):
    """Yield count conversations, each [{"from": "human", "value": ...}, {"from": "assistant", ...}, ...]."""
    speakers = ("human", "assistant")
    for i in range(count):
        turns = [(type_in(question, i), reply) for question, reply in conversation(rng)]
        yield [{"from": speaker, "value": text} for turn in turns for speaker, text in zip(speakers, turn)]


def conversation(rng):
    """[(question, answer), ...]: half end after one answer; others continue from it, or ask a new one."""
    turns = [first_turn(rng)]
    while rng.random() < 0.5:
        number = NUMBERS.get(last_number(turns[-1][1]))
        turns.append(first_turn(rng) if number is None or rng.random() < 0.4 else next_turn(rng, number))
    return turns


def first_turn(rng):
    kind = rng.random()
    if kind < 0.04:
        return rng.choice(SMALL_TALK)
    if kind < 0.06:
        a, b = rng.choices(range(LARGEST + 1), k=2)
        return f"{a}{rng.choice('+-')}{b}{rng.choice(['=?', '=', '等于几？'])}", USE_WORDS
    if kind < 0.08:
        a, b = sorted(rng.sample(range(LARGEST + 1), 2))
        return phrase(rng, ASK["-"][:8], a, "-", b), TOO_SMALL.format(a=NAMES[a], b=NAMES[b])
    if kind < 0.10:
        a = rng.randint(1, LARGEST)
        b = rng.randint(LARGEST + 1 - a, LARGEST)
        return phrase(rng, ASK["+"][:8], a, "+", b), TOO_LARGE.format(a=NAMES[a], b=NAMES[b])
    a, op, b = pick(rng)
    return phrase(rng, ASK[op], a, op, b), answer(a, op, b)


def next_turn(rng, a):
    """A question that continues from the number a."""
    while True:
        op = rng.choice("+-")
        b = rng.randint(0, LARGEST - a if op == "+" else a)
        if fact(a, op, b) not in HELD_OUT:
            return rng.choice(ASK_ON[op]).format(b=NAMES[b]), answer(a, op, b)


def last_number(text):
    """The number with which an answer ends, as it is spelled; '' where there is none."""
    return re.search(rf"([{DIGITS}十]*)。?$", text.strip()).group(1)


if __name__ == "__main__":
    rng = random.Random(sys.argv[1] if len(sys.argv) > 1 else "0")
    print(next(texts(rng, 1)))
    for turns in (conversation(rng) for _ in range(12)):
        print("", *(f"> {question}\n  {reply}" for question, reply in turns), sep="\n")
