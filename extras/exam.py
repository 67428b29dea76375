"""
An exam for the chat model of quickstart.sh chat: sums and differences that it has never seen.

    python -m extras.exam --checkpoint=output_chat_sft/ckpt.pt

Asks all questions on the facts that extras/synthetic_sums.py keeps out of both corpora, each in one of the
ways to ask, and twice more as the second question of a conversation: continuing from the first answer
(再加五呢？), and having nothing to do with it. The answers are greedy: always the likeliest token. An answer
is right if it is the one right sentence, character for character.
Questions of the training are asked as well: what the model knows of those, it may know by heart.
"""

import collections
import random

import torch

from configurator import InputError, in_chinese, override
from extras.synthetic_sums import ASK, ASK_ON, EXAM, LEARNED, NAMES, answer, phrase, result
from sample import TextGenerator

checkpoint = "output_chat_sft/ckpt.pt"  # a model that was fine-tuned on the conversations
system = "你是一个AI助手"  # the system message, as in fine-tuning; '' is none
show = 10  # print this many answers, and as many wrong ones
device = "auto"  # auto is cuda, mps or cpu, the first that is there

CHINESE = {  # in a Chinese terminal
    "questions of the training": "训练里的题",
    "exam": "考试：没见过的题",
    "exam, continuing from another answer (再加五呢？)": "考试，接着上一个回答问（再加五呢？）",
    "exam, after another question": "考试，先问过别的题",
    "sums, no carry": "加法，不进位",
    "sums, carry": "加法，进位",
    "differences, no carry": "减法，不退位",
    "differences, carry": "减法，退位",
    "all": "全部",
    "right": "答对",
    "of": "/",
    "answers": "回答",
    "wrong answers": "答错的",
}
MAX_ANSWER = 48  # tokens
BATCH = 256  # conversations


def local(text):
    return CHINESE[text] if in_chinese() else text


def ask_all(generator, chats):
    """The greedy answer to each chat. Chats of the same number of tokens are answered as one batch."""
    prompts = [generator.tokenizer.encode_chat(chat, add_generation_prompt=True)[0] for chat in chats]
    by_length = collections.defaultdict(list)
    for i, ids in enumerate(prompts):
        if len(ids) + MAX_ANSWER > generator.model.args.max_seq_len:
            raise InputError(f"{checkpoint} has no room for an answer after {len(ids)} tokens")
        by_length[len(ids)].append(i)
    answers = [""] * len(chats)
    for group in by_length.values():
        for part in (group[i : i + BATCH] for i in range(0, len(group), BATCH)):
            idx = torch.tensor([prompts[i] for i in part], device=generator.device)  # (B, T)
            ids = generator.model.generate(idx, MAX_ANSWER, 0, None, None, generator.stop_ids)
            for i, row in zip(part, ids[:, idx.shape[1] :].tolist()):
                answers[i] = generator.tokenizer.decode(row)
    return answers


def direct(rng, a, op, b):
    """[(question, right answer)]"""
    return [(phrase(rng, ASK[op], a, op, b), answer(a, op, b))]


def follow_up(rng, a, op, b):
    """The same as a second question, after one of the training whose result is a."""
    first = rng.choice([question for question in LEARNED if result(*question) == a])
    second = rng.choice(ASK_ON[op]).format(b=NAMES[b])
    return [*direct(rng, *first), (second, answer(a, op, b))]


def another(rng, a, op, b):
    """The same as a second question that has nothing to do with the first."""
    return [*direct(rng, *rng.choice(LEARNED)), *direct(rng, a, op, b)]


def as_messages(turns):
    """A chat whose last question waits for its answer."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, reply in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return messages[:-1]


def kind(a, op, b):
    """Whether the ones digits carry: 3 + 4 does not, 8 + 4 does; 12 - 4 borrows."""
    carries = a % 10 + b % 10 > 9 if op == "+" else a % 10 < b % 10
    return f"{'sums' if op == '+' else 'differences'}, {'' if carries else 'no '}carry"


def hold_exam(generator, name, questions, way):
    """Ask, mark, and print a table of the right answers; returns [(question, answer, right answer)]."""
    rng = random.Random(0)
    turns = [way(rng, *question) for question in questions]
    replies = ask_all(generator, [as_messages(chat) for chat in turns])
    papers = [(chat[-1][0], reply, chat[-1][1]) for chat, reply in zip(turns, replies)]
    asked = collections.Counter(kind(*question) for question in questions)
    asked["all"] = len(questions)
    right = collections.Counter()
    for question, (_, reply, wanted) in zip(questions, papers):
        right.update({kind(*question): reply == wanted, "all": reply == wanted})
    print(f"\n{local(name)}")
    for row, count in sorted(asked.items(), key=lambda item: item[1]):
        padding = " " * (24 - len(local(row).encode("gbk")))  # a Chinese character is two columns wide
        counts = f"{right[row]:>5,} {local('of')} {count:>5,} {local('right')}"
        print(f"    {local(row)}{padding} {counts}, {right[row] / count:6.1%}")
    return papers


def main():
    generator = TextGenerator(checkpoint, device=device)
    sample = random.Random(1).sample(LEARNED, len(EXAM))
    hold_exam(generator, "questions of the training", sample, direct)
    follow_ups = hold_exam(generator, "exam, continuing from another answer (再加五呢？)", EXAM, follow_up)
    follow_ups += hold_exam(generator, "exam, after another question", EXAM, another)
    papers = hold_exam(generator, "exam", EXAM, direct)
    wrong = [paper for paper in papers + follow_ups if paper[1] != paper[2]]
    for title, some in (("answers", random.Random(2).sample(papers, show)), ("wrong answers", wrong[:show])):
        print(f"\n{local(title)}:")
        for question, reply, wanted in some:
            print(f"    {question}  {reply}" + (f"  [{wanted}]" if reply != wanted else ""))


if __name__ == "__main__":
    override(globals())
    main()
