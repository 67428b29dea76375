"""
A conversation with a model that was fine-tuned for it: sample.py --chat.

/reset begins a new conversation, and /exit (or Ctrl-D) ends it.
"""

import contextlib
import sys

from configurator import in_chinese
from prepare_data import warn_of_template
from sample import TextStreamer

GREETING = {
    False: "A chat. Ask, and press Enter; /reset begins again, /exit or Ctrl-D leaves.",
    True: "开始聊天。输入问题，按回车；/reset 重新开始，/exit 或 Ctrl-D 退出。",
}


class Chat:
    """
    chat = Chat(generator); chat.ask("你好") prints the answer as it comes, and returns it.

    generator: a sample.TextGenerator. The model remembers nothing: every answer is made from the whole
    conversation, which is read again. When that is longer than the context, the oldest turns are dropped.
    """

    def __init__(self, generator, system="", out=None):
        self.generator = generator
        self.out = out
        self.opening = [{"role": "system", "content": system}] if system else []
        self.turns = []  # user, assistant, user, ...

    def encode(self, limit):
        """The ids of the conversation up to where the answer begins, at most `limit` of them."""
        while True:
            messages = self.opening + self.turns
            ids, _ = self.generator.tokenizer.encode_chat(messages, add_generation_prompt=True)
            if len(ids) <= limit:
                return ids
            if len(self.turns) == 1:
                problem = f"the question has {len(ids)} tokens: the last {limit} are kept"
                if in_chinese():
                    problem = f"问题有 {len(ids)} 个 token，太长了：只留最后 {limit} 个"
                print(problem, file=sys.stderr)
                return ids[-limit:]
            del self.turns[:2]

    def ask(self, question, max_new_tokens=256, temperature=0.8, top_k=300, top_p=0.95):
        """The answer, printed as it comes. max_new_tokens and the others: see model.generate_stream."""
        context = self.generator.model.args.max_seq_len
        self.turns.append({"role": "user", "content": question})
        ids = self.encode(context - min(max_new_tokens, context // 2))  # the rest is for the answer
        streamer = TextStreamer(self.generator.tokenizer, out=self.out)
        max_new = min(max_new_tokens, context - len(ids))  # a longer answer would push the question out
        for (new,) in self.generator.stream(ids, 1, max_new, temperature, top_k, top_p):
            streamer.put(new)
        streamer.put(end=True)
        self.turns.append({"role": "assistant", "content": streamer.text})
        return streamer.text


def chat_loop(generator, system, question, settings):
    """Answer the question, or where it is empty those from the terminal (or a pipe), one a line."""
    generator.tokenizer.encode_chat([])  # refuses a tokenizer without a chat format, at once
    warn_of_template(generator.tokenizer)
    conversation = Chat(generator, system)
    if question:
        conversation.ask(question, *settings)
        return
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 -- from here on, input() can edit the line and recall earlier ones
    if hasattr(sys.stdin, "reconfigure"):  # Jupyter's has none
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if sys.stdin.isatty():
        print(GREETING[in_chinese()])
    while True:
        try:
            line = input("> " * sys.stdin.isatty()).strip()
        except EOFError:  # Ctrl-D
            return
        if line == "/exit":
            return
        if line == "/reset":
            conversation = Chat(generator, system)
        elif line:
            conversation.ask(line, *settings)
