"""
A model writes.

Reads  output/ckpt.pt (train.py), or llama2.c's checkpoints; the tokenizer comes out of the checkpoint
Writes to the terminal, as the words come

    python sample.py --prompt "One day, Lily met a Shoggoth"
    python sample.py --prompt=FILE:beginning.txt --num_samples=4 --temperature=0.7
    python sample.py --checkpoint=stories15M.pt --tokenizer=tokenizer.model     a checkpoint of llama2.c's
    python sample.py --checkpoint=output_hf                                     a folder of transformers'
    python sample.py --checkpoint=output_sft/ckpt.pt --chat=True                a conversation

Sampling stops where the story does: at the model's BOS, with which the next story would begin, or EOS. So
does an answer of a chat. There, /reset begins a new conversation, and Ctrl-D ends it.
"""

import os
import sys
import time
from types import SimpleNamespace

import torch

import model as M
from checkpoints import build_model, load_checkpoint
from configurator import need, override
from devices import compile_step, find_device, find_dtype
from tokenizer import Tokenizer

checkpoint = "output/ckpt.pt"  # a checkpoint, or a folder of the transformers library's
tokenizer = ""  # a tokenizer, where the checkpoint holds none
prompt = ""  # how the story begins, or the one question of a chat; FILE:path takes it from a file
chat = False  # hold a conversation, for models that were fine-tuned on some
system = "你是一个AI助手"  # what a chat begins with, as in fine-tuning; '' is nothing
num_samples = 1  # stories; several are written as one batch
max_new_tokens = 256  # at most, for each
temperature = 0.8  # 0: always the likeliest token; 1: as the model has learned it; above: wilder
top_k = 300  # only the k likeliest tokens; 0: all
top_p = 0.95  # only the likeliest tokens that make up this probability; 1: all
seed = 1337  # another seed writes another story
device = "auto"  # auto is cuda, mps or cpu, the first that is there
dtype = "auto"  # auto | float32 | bfloat16 | float16: of the weights; auto: bfloat16 if compiled and fast
compile = False  # torch.compile what a token takes: pays for many stories and long chats, see extras/bench.py


class TextGenerator:
    """
    TextGenerator("output/ckpt.pt").sample("One day, Lily") -> ["One day, Lily met ...", ...]

    checkpoint            a path
    tokenizer_model_path  a tokenizer's path; None takes the checkpoint's own
    ValueError where the checkpoint cannot be read or its tokenizer has another vocabulary.
    """

    def __init__(
        self, checkpoint="output/ckpt.pt", tokenizer_model_path=None, seed=1337, device=None, dtype="float32",
        compile=False,
    ):  # fmt: skip
        self.device = find_device(device or "auto")
        if os.path.isdir(checkpoint):
            self.model, own = TransformersModel(checkpoint), checkpoint
        else:
            saved = load_checkpoint(checkpoint)
            self.model, own = build_model(saved), saved.get("tokenizer")
        self.model.to(self.device).eval()
        if self.device != "cpu":
            dtype = find_dtype(dtype, self.device)
        for p in self.model.parameters():  # not the tables of RoPE, which need float32
            p.data = p.data.to(getattr(torch, dtype))
        if compile:
            compile_step(self.model, self.device)
        if tokenizer_model_path or own:
            self.tokenizer = Tokenizer(tokenizer_model_path or own)
        else:
            raise ValueError(f"{checkpoint} holds no tokenizer: give it one, --tokenizer=PATH")
        words, ids = self.tokenizer.n_words, self.model.args.vocab_size
        if os.path.isdir(checkpoint):  # others have more ids than pieces: matrices of round sizes are faster
            self.model.args.vocab_size = ids = min(words, ids)
        if words != ids:
            raise ValueError(f"{self.tokenizer.name} has {words} pieces, but the model a vocabulary of {ids}")
        ends = (self.tokenizer.bos_id, self.tokenizer.eos_id, *getattr(self.model, "stop_ids", ()))
        self.stop_ids = set(ends) - {-1}
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def stream(self, ids, num_samples=1, max_new_tokens=256, temperature=1.0, top_k=300, top_p=None):
        """Continue a list of ids; yields a list of num_samples new ids a step. See Transformer.stream."""
        x = torch.tensor([ids] * num_samples, device=self.device)  # (B, T)
        settings = (max_new_tokens, temperature, top_k, top_p, self.stop_ids, self.generator)
        for new in self.model.stream(x, *settings):
            yield new.tolist()

    def warm_up(self, num_samples):
        """Compile now, for that many stories at a time, and say how long it took."""
        began = time.time()
        start = torch.zeros(num_samples, 1, dtype=torch.long, device=self.device)
        self.model.generate(start, 2, temperature=0)  # the second token is the first that sees another
        print(f"compiled in {time.time() - began:.1f} s", file=sys.stderr)

    def encode(self, start):
        """A prompt's ids, with BOS. Keeps the end where it is longer than the context."""
        ids, context = self.tokenizer.encode(read_prompt(start), bos=True), self.model.args.max_seq_len
        if not ids:
            raise ValueError("an empty prompt needs a tokenizer with BOS")
        if len(ids) > context:
            print(f"a prompt of {len(ids)} tokens, a context of {context}: its end is kept", file=sys.stderr)
        return ids[-context:]

    def sample(
        self, start="Hello!", num_samples=3, max_new_tokens=256, temperature=1.0, top_k=300, top_p=None
    ):
        """num_samples texts that begin with `start`, written as one batch."""
        ids = self.encode(start)
        rows = [list(ids) for _ in range(num_samples)]
        for new in self.stream(ids, num_samples, max_new_tokens, temperature, top_k, top_p):
            for row, i in zip(rows, new):
                row.append(i)  # rows that have ended repeat BOS or EOS, which have no text
        return [self.tokenizer.decode(row) for row in rows]


class TransformersModel(torch.nn.Module):
    """
    A causal language model of the transformers library, of whatever architecture, behind what TextGenerator
    and Chat use of ours: args and stream(). Sampling is ours (M.pick), so that the knobs mean the same.
    """

    def __init__(self, folder):
        super().__init__()
        transformers = need("transformers", f"{folder}, a folder,")
        self.lm = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config, ends = self.lm.config, self.lm.generation_config.eos_token_id
        context = getattr(config, "max_position_embeddings", 2048)
        self.args = SimpleNamespace(max_seq_len=context, vocab_size=config.vocab_size)
        self.stop_ids = [] if ends is None else ends if isinstance(ends, list) else [ends]

    @torch.inference_mode()
    def stream(
        self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_ids=(), generator=None
    ):
        """See Transformer.stream: the same, with transformers' cache."""
        context = self.args.max_seq_len
        stops = torch.tensor(sorted(stop_ids), device=idx.device, dtype=torch.long)
        done = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
        idx, cache, start = idx[:, -context:], None, 0
        for _ in range(max_new_tokens):
            if idx.shape[1] > context:
                idx, cache, start = idx[:, -(context + 1) // 2 :], None, 0
            out = self.lm(idx[:, start:], past_key_values=cache, use_cache=True)
            cache, start = out.past_key_values, idx.shape[1]
            logits = out.logits[:, -1, : self.args.vocab_size]  # (B, V)
            new = torch.where(done, idx[:, -1], M.pick(logits, temperature, top_k, top_p, generator))
            done = done | torch.isin(new, stops)
            yield new
            if done.all():
                return
            idx = torch.cat((idx, new[:, None]), dim=1)


class Printer:
    """
    Print a text that arrives token by token. A character of several bytes may be spread over several
    tokens: it is held back until it is whole.
    """

    def __init__(self, tokenizer, ids, out=None):
        self.tokenizer, self.ids, self.shown, self.out = tokenizer, list(ids), "", out or sys.stdout

    def add(self, *new):
        self.ids += new
        text = self.tokenizer.decode(self.ids)
        whole = text.rstrip("\ufffd")  # what half a character decodes to
        if len(text) - len(whole) > 3:  # no character has so many bytes missing: these are part of the text
            whole = text
        self._show(whole)

    def close(self):
        """Show what is left, half characters too."""
        self._show(self.tokenizer.decode(self.ids))

    def _show(self, text):
        print(text[len(self.shown) :], end="", flush=True, file=self.out)
        self.shown = text


class Chat:
    """
    chat = Chat(generator); chat.ask("你好") prints the answer as it comes, and returns it.

    The model remembers nothing: every answer is made from the whole conversation, read anew. Where that no
    longer fits into the context, the oldest turns are dropped.
    """

    def __init__(self, generator, system="", out=None):
        self.generator, self.out = generator, out
        self.opening = [{"role": "system", "content": system}] if system else []
        self.turns = []  # user, assistant, user, ...

    def ids(self, limit):
        """The ids of all up to where the answer begins, at most `limit`; the oldest turns are dropped."""
        tok = self.generator.tokenizer
        while True:
            ids, _ = tok.encode_chat(self.opening + self.turns, add_generation_prompt=True)
            if len(ids) <= limit:
                return ids
            if len(self.turns) == 1:
                print(f"the question has {len(ids)} tokens: the last {limit} are kept", file=sys.stderr)
                return ids[-limit:]
            del self.turns[:2]

    def ask(self, question, max_new_tokens=256, temperature=0.8, top_k=300, top_p=0.95):
        context = self.generator.model.args.max_seq_len
        self.turns.append({"role": "user", "content": question})
        ids = self.ids(context - min(max_new_tokens, context // 2))  # what remains is for the answer
        printer = Printer(self.generator.tokenizer, [], self.out)
        room = min(max_new_tokens, context - len(ids))  # a longer answer would push the question out
        for (new,) in self.generator.stream(ids, 1, room, temperature, top_k, top_p):
            printer.add(new)
        printer.close()
        print(file=self.out)
        self.turns.append({"role": "assistant", "content": printer.shown})
        return printer.shown


def read_prompt(text):
    """A prompt as it is, or, for FILE:path, what is in the file."""
    if not text.startswith("FILE:"):
        return text
    with open(text[5:], encoding="utf-8") as f:
        return f.read()


def converse(generator):
    """Questions from the terminal (or a pipe), a line each; --prompt asks a single one."""
    settings = (max_new_tokens, temperature, top_k, top_p)
    conversation = Chat(generator, system)
    if prompt:
        return conversation.ask(read_prompt(prompt), *settings)
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        print(mark, end="", flush=True)
        line = sys.stdin.readline()
        if not line:  # Ctrl-D
            return print() if mark else None
        if line.strip() == "/reset":
            conversation = Chat(generator, system)
        elif line.strip():
            conversation.ask(line.strip(), *settings)


def main():
    stories = 1 if chat else num_samples
    kind = dtype
    if dtype == "auto":  # one story reads all weights for each token: half the bytes, less time
        kind = find_dtype("bfloat16", find_device(device)) if compile and stories == 1 else "float32"
    generator = TextGenerator(checkpoint, tokenizer or None, seed, device, kind, compile)
    if compile:
        generator.warm_up(stories)
    if chat:
        return converse(generator)
    ids = generator.encode(prompt)
    began = time.time()
    if num_samples == 1:
        printer = Printer(generator.tokenizer, ids)
        printer.add()
        for (new,) in generator.stream(ids, 1, max_new_tokens, temperature, top_k, top_p):
            printer.add(new)
        printer.close()
        print()
        written = len(printer.ids) - len(ids)
        print(f"{written / (time.time() - began):.0f} tokens/s", file=sys.stderr)
    else:
        texts = generator.sample(prompt, num_samples, max_new_tokens, temperature, top_k, top_p)
        print("\n---\n".join(texts))


if __name__ == "__main__":
    override(globals())
    if num_samples < 1 or max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"num_samples={num_samples} and max_new_tokens={max_new_tokens} must be at least 1, "
            f"temperature={temperature} and top_k={top_k} at least 0, top_p={top_p} above 0 and at most 1"
        )
    main()
