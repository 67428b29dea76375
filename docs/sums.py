"""
A language of a hundred sentences for chapters 13 to 15 of course.md: sums of two digits, in Chinese.

Writes data_zh/text.jsonl in the shape of seq-monkey, and data_zh/belle.json in that of BELLE

    python docs/sums.py
"""

import itertools
import json
import os
import random

DIGITS = "零一二三四五六七八九"
NAMES = [*DIGITS, "十", *("十" + digit for digit in DIGITS[1:9])]  # 0 .. 18
SUMS = [
    (f"{NAMES[a]}加{NAMES[b]}等于几?", f"{NAMES[a]}加{NAMES[b]}等于{NAMES[a + b]}。")
    for a, b in itertools.product(range(10), repeat=2)
]


def dump(item):
    return json.dumps(item, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    random.seed(0)
    os.makedirs("data_zh", exist_ok=True)
    with open("data_zh/text.jsonl", "w", encoding="utf-8") as f:  # a document: twenty sums, one after another
        for _ in range(2000):
            f.write(dump({"text": "".join(answer for _, answer in random.choices(SUMS, k=20))}))
    with open("data_zh/belle.json", "w", encoding="utf-8") as f:  # a conversation: one question, one answer
        for question, answer in random.choices(SUMS, k=3000):
            turns = [{"from": "human", "value": question}, {"from": "assistant", "value": answer}]
            f.write(dump({"conversations": turns}))
