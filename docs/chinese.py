"""
The pictures of the course in Chinese: every text of an SVG that the table knows is replaced.

Reads  docs/figures/NAME.svg (figures.py)
Writes docs/figures/NAME.zh.svg

    python docs/chinese.py

Names of files, functions and weights stay as they are. A text that is not in the table stays English.
"""

import glob
import html
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the course's own files

from configurator import atomic_write

FIGURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "figures")
WORDS = [  # a pattern for the whole text, and its Chinese
    # shapes, learning, valley, look_back
    (r"1. Into vectors", r"1. 变成向量"),
    (r"2. Attention", r"2. 注意力"),
    (r"3. Feed-forward", r"3. 前馈网络"),
    (r"4. Loss", r"4. 损失"),
    (r"(\d+) sheets: the pieces", r"\1 张：每段文本一张"),
    (r"(\d+) rows: the positions", r"\1 行：每个位置一行"),
    (r"(\d+) columns: the vector", r"\1 列：这个位置的向量"),
    (r"then wo; the result has the shape of x, and is added to it", r"再乘 wo；结果和 x 形状相同，加到 x 上"),
    (r"mask,", r"掩码，"),
    (r"and", r"和"),
    (r"loss: a number", r"损失：一个数"),
    (r"What docs/minimal.py has learned at each step", r"docs/minimal.py 在每一步学会了什么"),
    (r"loss \(nats per character\)", r"损失（每个字符多少 nat）"),
    (r"([\d.]+): what no model can know", r"\1：任何模型都无法预知的部分"),
    (r"learning rate (\d+)", r"学习率 \1"),
    (r"loss", r"损失"),
    (r"the best w: ([\d.]+), loss ([\d.]+)", r"最好的 w：\1，损失 \2"),
    (r"She or He\? (.*)", r"She 还是 He？\1"),
    (r"which thing\? (.*)", r"是哪样东西？\1"),
    (r"ball or book\? (.*)", r"ball 还是 book？\1"),
    # data
    (r"tinystories.py download, or synthesize", r"tinystories.py download 或 synthesize"),
    (r"prepare_data.py download, pretrain, sft", r"prepare_data.py download、pretrain、sft"),
    (r"prepare_data.py pretokenize, or pretokenize_sft", r"prepare_data.py pretokenize 或 pretokenize_sft"),
    (r"tokenizer.json, with a chat template beside it", r"tokenizer.json，旁边是聊天模板"),
    (r"(\{.*\})\s+or\s+(\[.*\])", r"\1   或   \2"),
    (r"a folder of shards: (.*), (.*); for chats (.*)", r"分片的目录：\1、\2；聊天数据还有 \3"),
    (r"\.\.\.  (\d+) ids", r"……  \1 个 id"),
    (r"Task.iter_batches: y is x, one token later", r"Task.iter_batches：y 是 x 往后错一个 token"),
    (r"a model for transformers, llama2.c, GGUF", r"transformers、llama2.c、GGUF 的模型文件"),
    # decoder
    (r"each ([\d,]+) parameters", r"每层 \1 个参数"),
    (r"([\d,]+) parameters", r"\1 个参数"),
    (r"the same weights, transposed", r"同一组权重，转置"),
    (r"q (\(.*\)): (\d+) heads;  k and v (\(.*\)): (\d+) heads", r"q \1：\2 个头；k 和 v \3：\4 个头"),
    (r"w1 x and w3 x (.*)", r"w1 x 和 w3 x \1"),
    (r"each position looks at itself and those before it", r"每个位置看自己和前面的位置"),
    (r"each position thinks for itself", r"每个位置各算各的"),
    (r"softmax of", r"先算 softmax："),
    (r"(q·k / √\d+),", r"\1，"),
    (r"times v", r"再乘以 v"),
    # gqa, rope
    (r"query heads", r"查询头"),
    (r"key/value heads", r"键/值头"),
    (r"multi-head", r"多头"),
    (r"grouped-query", r"分组查询"),
    (r"multi-query", r"多查询"),
    (r"wk and wv, each block", r"每层的 wk 和 wv"),
    (r"KV cache, float32", r"KV 缓存，float32"),
    (r"([\d,]+) bytes per token", r"每个 token \1 字节"),
    (r"features (\d+) and (\d+):", r"第 \1 和第 \2 个特征："),
    (r"([\d.]+) radian per token", r"每个 token \1 弧度"),
    (r"distance of query and key \(tokens\)", r"查询和键的距离（token）"),
    (r"turned query · turned key", r"旋转后的查询 · 旋转后的键"),
    (r"query at (\d+)", r"查询在位置 \1"),
    # loss, lr, muon, copying, cache
    (r"Loss of the quick start", r"快速上手的损失"),
    (r"step", r"步"),
    (r"loss \(nats per token\)", r"损失（每个 token 多少 nat）"),
    (r"line: training, one step", r"线：训练，单步"),
    (r"dots: validation", r"点：验证"),
    (r"([\d.]+): as unsure as among", r"\1：就像要在"),
    (r"([\d.,]+) equally likely tokens", r"\1 个同样可能的 token 里猜"),
    (r"learning rate", r"学习率"),
    (r"The learning rate, by the schedules of train.py", r"train.py 的几种学习率调度"),
    (r"the beginning", r"开头"),
    (r"(\w+); dots: the log of the run", r"\1；点：训练日志"),
    (r"The (\d+) directions of (.*), the strongest first", r"\2 的 \1 个方向，从强到弱"),
    (r"direction", r"方向"),
    (r"strength \(singular value\)", r"强度（奇异值）"),
    (r"the averaged gradient; its strongest is drawn as 1", r"平均梯度；最强的一个画作 1"),
    (r"what Muon makes of it", r"Muon 把它变成的样子"),
    (r"What the stories of the quick start keep", r"快速上手的故事能保持住什么"),
    (r"stories \(%\)", r"故事（%）"),
    (r"every word is one", r"每个词都是真有的词"),
    (r"ended by itself", r"自己结束"),
    (r"pronouns fit the hero", r"代词和主角相符"),
    (r"hero keeps the name", r"主角的名字不变"),
    (r"creature's word kept", r"小怪物的那个词不变"),
    (r"thing keeps its kind", r"关键物品不变"),
    (r"What a token costs: CPU, (\d+) threads?, the best of (\d+) runs",
     r"一个 token 用多少时间：CPU，\1 线程，\2 次里最快的"),
    (r"position in the text", r"在文本里的位置"),
    (r"milliseconds per token", r"每个 token 的毫秒数"),
    (r"with the KV cache; (\d+) tokens: (.*) s", r"有 KV 缓存；\1 个 token：\2 秒"),
    (r"without: all positions again; (\d+) tokens: (.*) s", r"没有：所有位置重算；\1 个 token：\2 秒"),
    # head, mask
    (r"(layers.\d+), head (\d+): a row for each", r"\1，第 \2 个头：每个位置"),
    (r"position, and where it looks", r"一行，颜色深浅是它看哪里"),
    (r"what comes next, and its probability", r"接下来是什么，概率多大"),
    (r"1: to be learned, an answer and the token that ends it;  0: given",
     r"1：要学的，回答和结束它的 token；0：给出的"),
]  # fmt: skip


def translate(svg):
    """The SVG with the Chinese of all texts that are in WORDS."""

    def chinese(match):
        text = html.unescape(match[1])
        for pattern, words in WORDS:
            found = re.fullmatch(pattern, text)
            if found:
                return f">{html.escape(found.expand(words), quote=False)}</text>"
        return match[0]

    return re.sub(r">([^<>]+)</text>", chinese, svg)


def main():
    for path in sorted(glob.glob(os.path.join(glob.escape(FIGURES), "*.svg"))):
        if ".zh." not in path:
            with open(path, encoding="utf-8") as f:
                svg = translate(f.read())
            with atomic_write(path.removesuffix("svg") + "zh.svg") as f:
                f.write(svg)


if __name__ == "__main__":
    main()
