"""
A model writes.

Reads  output/ckpt.pt (train.py), or llama2.c's checkpoints; the tokenizer comes out of the checkpoint
Writes to the terminal, as the words come

    python sample.py --prompt "One day, Lily met a Shoggoth"
    python sample.py --prompt=FILE:beginning.txt --num_samples=4 --temperature=0.7
    python sample.py --checkpoint=stories15M.pt --tokenizer=tokenizer.model     a checkpoint of llama2.c's

Sampling stops where the story does: at the model's BOS, with which the next story would begin, or EOS.
"""

import sys
import time

import torch

import model as M
from configurator import override
from devices import autocast, find_device, find_dtype
from tokenizer import Tokenizer

checkpoint = "output/ckpt.pt"  # a checkpoint
tokenizer = ""  # a tokenizer, where the checkpoint holds none
prompt = ""  # how the story begins; FILE:path takes it from a file
num_samples = 1  # stories; several are written as one batch
max_new_tokens = 256  # at most, for each
temperature = 0.8  # 0: always the likeliest token; 1: as the model has learned it; above: wilder
top_k = 300  # only the k likeliest tokens; 0: all
top_p = 0.95  # only the likeliest tokens that make up this probability; 1: all
seed = 1337  # another seed writes another story
device = "auto"  # auto is cuda, mps or cpu, the first that is there
dtype = "float32"  # float32 | bfloat16 | float16: of the matrix products


class TextGenerator:
    """
    TextGenerator("output/ckpt.pt").sample("One day, Lily") -> ["One day, Lily met ...", ...]

    checkpoint            a path
    tokenizer_model_path  a tokenizer's path; None takes the checkpoint's own
    ValueError where the checkpoint cannot be read or its tokenizer has another vocabulary.
    """

    def __init__(
        self, checkpoint="output/ckpt.pt", tokenizer_model_path=None, seed=1337, device=None, dtype="float32"
    ):
        self.device = find_device(device or "auto")
        self.dtype = find_dtype(dtype, self.device)
        saved = M.load_checkpoint(checkpoint)
        self.model = M.build_model(saved).to(self.device).eval()
        if tokenizer_model_path:
            self.tokenizer = Tokenizer(tokenizer_model_path)
        elif saved.get("tokenizer"):
            self.tokenizer = Tokenizer(saved["tokenizer"])
        else:
            raise ValueError(f"{checkpoint} holds no tokenizer: give the one it was trained with, --tokenizer=PATH")
        words, ids = self.tokenizer.n_words, self.model.args.vocab_size
        if words != ids:
            raise ValueError(f"{self.tokenizer.name} has {words} pieces, but the model a vocabulary of {ids}")
        self.stop_ids = {self.tokenizer.bos_id, self.tokenizer.eos_id} - {-1}
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def stream(self, ids, num_samples=1, max_new_tokens=256, temperature=1.0, top_k=300, top_p=None):
        """Continue a list of ids; yields a list of num_samples new ids a step. See Transformer.stream."""
        x = torch.tensor([ids] * num_samples, device=self.device)  # (B, T)
        with autocast(self.device, self.dtype):
            for new in self.model.stream(
                x, max_new_tokens, temperature, top_k, top_p, self.stop_ids, self.generator
            ):
                yield new.tolist()

    def encode(self, start):
        """A prompt's ids, with BOS; FILE:path reads the file. Keeps the end where it is longer than the context."""
        if start.startswith("FILE:"):
            with open(start[5:], encoding="utf-8") as f:
                start = f.read()
        ids, context = self.tokenizer.encode(start, bos=True), self.model.args.max_seq_len
        if not ids:
            raise ValueError("an empty prompt needs a tokenizer with BOS")
        if len(ids) > context:
            print(f"the prompt has {len(ids)} tokens, the context {context}: its end is kept", file=sys.stderr)
        return ids[-context:]

    def sample(self, start="Hello!", num_samples=3, max_new_tokens=256, temperature=1.0, top_k=300, top_p=None):
        """num_samples texts that begin with `start`, written as one batch."""
        ids = self.encode(start)
        rows = [list(ids) for _ in range(num_samples)]
        for new in self.stream(ids, num_samples, max_new_tokens, temperature, top_k, top_p):
            for row, i in zip(rows, new):
                row.append(i)  # rows that have ended repeat BOS or EOS, which have no text
        return [self.tokenizer.decode(row) for row in rows]


class Printer:
    """
    Print a text that arrives token by token. A character of several bytes may be spread over several tokens: it is
    held back until it is whole.
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


def main():
    generator = TextGenerator(checkpoint, tokenizer or None, seed, device, dtype)
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
            f"num_samples={num_samples} and max_new_tokens={max_new_tokens} must be at least 1, temperature={temperature} "
            f"and top_k={top_k} at least 0, top_p={top_p} above 0 and at most 1"
        )
    main()
