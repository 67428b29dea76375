"""
A model writes.

Reads  output/ckpt.pt (train.py), or a checkpoint of llama2.c's; the tokenizer comes out of the checkpoint
Writes to the terminal: one story as its words come, several (--num_samples) when the last has ended

    python sample.py --prompt "One day, Lily met a Shoggoth"
    python sample.py --prompt=FILE:beginning.txt --num_samples=4 --temperature=0.7
    python sample.py --checkpoint=stories15M.pt --tokenizer=tokenizer.model     a checkpoint of llama2.c's
    python sample.py --checkpoint=output_sft/ckpt.pt --chat                     a conversation

A story ends at BOS, with which the next one would begin, or at EOS; an answer in a chat does, too.
"""

import os
import sys
import time

import torch

from configurator import InputError, override
from devices import find_device, find_dtype
from model import Transformer
from reader import read_checkpoint, read_text
from tokenizer import Tokenizer

checkpoint = "output/ckpt.pt"  # where the model is; output/last.pt is taken where there is no ckpt.pt yet
tokenizer = ""  # a tokenizer, where the checkpoint holds none
prompt = ""  # how the story begins, or the one question of a chat; FILE:path takes it from a file
chat = False  # hold a conversation, with a model that was fine-tuned for it
system = "你是一个AI助手"  # the system message of a chat, as in fine-tuning; '' is none
num_samples = 1  # at least 1: stories; several are written as one batch
max_new_tokens = 256  # at least 1: tokens of the longest story
temperature = 0.8  # at least 0: 0 takes the likeliest token, 1 is what the model has learned, above is wilder
top_k = 300  # at least 0: only the k likeliest tokens; 0: all
top_p = 0.95  # above 0, at most 1: only the likeliest tokens that make up this probability; 1: all
seed = 1337  # at least 0, below 4e9: another seed writes another story
device = "auto"  # auto is cuda, mps or cpu, the first that is there
dtype = "auto"  # auto | float32 | bfloat16 | float16: of the weights; auto: bfloat16 where it is faster
compile = False  # torch.compile the decoding step; worth it for many stories and long chats


class TextGenerator:
    """
    TextGenerator("output/ckpt.pt").sample("One day, Lily") -> ["One day, Lily met ...", ...]
    tokenizer_model_path: None takes the tokenizer that the checkpoint holds.
    """

    def __init__(self, checkpoint="output/ckpt.pt", tokenizer_model_path=None, seed=1337, device="auto",
                 dtype="float32", compile=False):  # fmt: skip
        last = os.path.join(os.path.dirname(checkpoint), "last.pt")
        if not os.path.exists(checkpoint) and os.path.exists(last):
            print(f"no {checkpoint} yet: taking {last}, the newest state of the run", file=sys.stderr)
            checkpoint = last
        saved = read_checkpoint(checkpoint)
        if not (tokenizer_model_path or saved.get("tokenizer")):
            raise InputError(f"{checkpoint} holds no tokenizer: give it one, --tokenizer=PATH")
        self.tokenizer = tok = Tokenizer(tokenizer_model_path or saved["tokenizer"])
        self.device = find_device(device)
        self.model = Transformer.from_checkpoint(saved).eval()
        self.model.num_pieces = tok.n_words  # a vocabulary may be padded
        if tok.n_words > (size := self.model.args.vocab_size):
            raise InputError(f"{tok.name} has {tok.n_words} pieces, the model a vocabulary of {size}")
        for p in self.model.parameters():  # not the tables of RoPE, which need float32
            p.data = p.data.to(getattr(torch, dtype))
            if (~p.isfinite()).any():
                raise InputError(f"{checkpoint} holds weights that are not finite in {dtype}")
        self.model.to(self.device)
        if compile:
            from extras.fast_decode import compile_decoding

            compile_decoding(self.model, self.device)
        self.stop_ids = {tok.bos_id, tok.eos_id, tok.chat_end_id, *saved.get("stop_ids", ())} - {-1}
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def encode(self, start):
        """The ids of a prompt, with BOS, or EOS. Of one that is longer than the context, the end."""
        ids = self.tokenizer.encode(start, bos=True) or [max(self.tokenizer.eos_id, 0)]
        if len(ids) > (context := self.model.args.max_seq_len):
            print(f"the prompt has {len(ids)} tokens: the last {context} are kept", file=sys.stderr)
        return ids[-context:]

    def stream(self, ids, num_samples=1, max_new_tokens=256, temperature=1.0, top_k=300, top_p=None):
        """Continue ids, whose last word is whole; yields a list of the num_samples new ids of each step."""
        idx = torch.tensor([ids] * num_samples, device=self.device)  # (B, T)
        settings = (max_new_tokens, temperature, top_k, top_p, self.stop_ids, self.generator)
        yield from self.model.generate_stream(idx, *settings, self.tokenizer.longer(ids[-1]))

    def sample(self, start="Hello!", num_samples=3, *settings, **named_settings):
        """num_samples texts that begin with `start`, written as one batch; for the settings see stream."""
        ids = self.encode(start)
        steps = [[i] * num_samples for i in ids]  # (T, B): a row that has ended repeats BOS, EOS: no text
        steps += self.stream(ids, num_samples, *settings, **named_settings)
        return [self.tokenizer.decode(list(row)) for row in zip(*steps)]


class TextStreamer:
    """Print a text as its tokens come. A character is held back until all tokens with its bytes are there."""

    def __init__(self, tokenizer, ids=(), out=None):
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.text = ""  # what is printed
        self.out = out or sys.stdout

    def put(self, *new, end=False):
        """Print what these ids complete; at the end all that is held back, and a line end."""
        self.ids += new
        text = self.tokenizer.decode(self.ids)
        complete = text.rstrip("\ufffd")  # a part of a character decodes to these
        if end or len(text) - len(complete) > 3:  # no character lacks so many bytes: they belong to the text
            complete = text
        print(complete[len(self.text) :], end="\n" if end else "", flush=True, file=self.out)
        self.text = complete


def main():
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA
    found_device = find_device(device)
    # A single story waits for its weights, if compiled: half the bytes are half the time.
    halve = found_device.startswith("cuda") or (compile and num_samples == 1)
    weights = (find_dtype("bfloat16", found_device) if halve else "float32") if dtype == "auto" else dtype
    generator = TextGenerator(checkpoint, tokenizer or None, seed, found_device, weights, compile)
    settings = (max_new_tokens, temperature, top_k, top_p)
    text = read_text(prompt[5:]) if prompt.startswith("FILE:") else prompt
    if chat:
        from extras.chat import chat_loop

        chat_loop(generator, system, text, settings)
    elif num_samples > 1:
        print("\n---\n".join(generator.sample(text, num_samples, *settings)))
    else:
        ids = generator.encode(text)
        began = time.perf_counter()
        streamer = TextStreamer(generator.tokenizer, ids)
        streamer.put()  # the prompt
        for (new,) in generator.stream(ids, 1, *settings):
            streamer.put(new)
        streamer.put(end=True)
        speed = (len(streamer.ids) - len(ids)) / (time.perf_counter() - began)
        print(f"{speed:.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    override(globals())
    main()
