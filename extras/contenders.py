"""
What extras/bench.py compares: the ways to train a model and to let it write, each built when it is its turn.

"The tutorial's way": float32 on a CPU, bfloat16 autocast on a GPU, nothing compiled, a loss.item() a step; a
generate() that reads the whole text again for each token.
"""

import torch

from devices import autocast, compile_error, find_dtype, try_compile
from extras.causal_blocks import use_causal_blocks
from extras.fast_decode import compile_decoding
from extras.muon import configure_muon
from model import Transformer


def our_model(args, device):
    torch.manual_seed(0)
    return Transformer(args).to(device)


def llama(args, device):
    """The same shape in the transformers library."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size, hidden_size=args.dim, intermediate_size=args.hidden_dim,
        num_hidden_layers=args.n_layers, num_attention_heads=args.n_heads,
        num_key_value_heads=args.n_kv_heads, max_position_embeddings=args.max_seq_len,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device)


def plain_dtype(device):
    return "bfloat16" if device.startswith("cuda") else "float32"


def compiles(choice, device):
    """Whether the compiled ways are measured, too; 'auto': where torch.compile works."""
    return choice == "true" or (choice == "auto" and not compile_error(device))


def training_step(loss_of, model, optimizers, dtype, shape, device, wait=False):
    """
    A function that does a step of training as train.py does, and returns the number of its tokens.
    loss_of(x, y): the forward pass. shape: (micro-batches, B, T). wait: for the loss, at every step.
    """
    accumulation, batch_size, max_seq_len = shape
    x = torch.randint(model.args.vocab_size, (batch_size, max_seq_len), device=device)
    y = torch.randint(model.args.vocab_size, (batch_size, max_seq_len), device=device)
    scaler = torch.amp.GradScaler(device.split(":")[0], enabled=dtype == "float16")

    def step():
        for _ in range(accumulation):
            with autocast(device, dtype):
                loss = loss_of(x, y) / accumulation
            scaler.scale(loss).backward()
        if wait:
            loss.item()
        for o in optimizers:
            scaler.unscale_(o)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            if not wait:
                o.found_inf = (~grad_norm.isfinite()).float()
            o.step()
        scaler.update()
        model.zero_grad(set_to_none=True)
        return accumulation * batch_size * max_seq_len

    return step


def training_ways(args, shape, device, dtype, compile, with_transformers):
    """{name: build}; build() makes the model and returns its training_step."""

    def tutorial():
        model = our_model(args, device)
        adamw = torch.optim.AdamW(model.parameters(), 5e-4, fused=device.startswith("cuda"))
        return training_step(model, model, [adamw], plain_dtype(device), shape, device, wait=True)

    def ours(optimizer, choice):
        model = our_model(args, device)
        settings = (0.1, 5e-4, (0.9, 0.95))
        if optimizer == "muon":
            optimizers = configure_muon(model, *settings, choice)
        else:
            optimizers = [model.configure_optimizers(*settings)]
        if device.startswith("cpu") and dtype == "bfloat16":
            use_causal_blocks(model)
        return training_step(try_compile(model, choice, device), model, optimizers, dtype, shape, device)

    def theirs(choice):
        model = llama(args, device)
        model.args = args
        forward = try_compile(model, choice, device)
        adamw = torch.optim.AdamW(model.parameters(), 5e-4, fused=True)

        def loss_of(x, y):
            return forward(input_ids=x, labels=x, use_cache=False).loss

        return training_step(loss_of, model, [adamw], dtype, shape, device)

    ways = {"the tutorial's way": tutorial}
    for name, choice in (("eager", "false"), ("compiled", "true"))[: 1 + compiles(compile, device)]:
        for optimizer in ("adamw", "muon"):
            ways[f"train.py, {optimizer}, {name}"] = lambda o=optimizer, c=choice: ours(o, c)
        if with_transformers:
            ways[f"transformers, adamw, {name}"] = lambda c=choice: theirs(c)
    return ways


@torch.inference_mode()
def tutorial_generate(model, idx, count, device, temperature=0.8, top_k=300):
    """Each new token from a pass over the whole text, in the dtype that the tutorial takes."""
    for _ in range(count):
        with autocast(device, plain_dtype(device)):
            logits = model(idx[:, -model.args.max_seq_len :])[:, -1].float() / temperature
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        probs = logits.masked_fill(logits < kth, -float("inf")).softmax(dim=-1)
        idx = torch.cat((idx, torch.multinomial(probs, num_samples=1)), dim=1)
    return idx


def generating_ways(args, device, compile, with_transformers):
    """{name: build}; build() makes the model and returns write(prompts (B, T), new) -> ids (B, T + new)."""

    def tutorial():
        model = our_model(args, device).eval()
        return lambda x, n: tutorial_generate(model, x, n, device)

    def ours(dtype, compiled):
        model = our_model(args, device).eval()
        for p in model.parameters():
            p.data = p.data.to(getattr(torch, dtype))
        if compiled:
            compile_decoding(model, device)
        return lambda x, n: model.generate(x, n, 0.8, 300)

    def theirs(dtype):
        model = llama(args, device).to(getattr(torch, dtype)).eval()
        settings = {"do_sample": True, "temperature": 0.8, "top_k": 300}
        return lambda x, n: model.generate(x, max_new_tokens=n, min_new_tokens=n, **settings)

    fast = find_dtype("bfloat16", device)
    dtypes = ("float32", fast) if device.startswith("cuda") else ("float32", "bfloat16")
    ways = {"the tutorial's way": tutorial}
    for compiled in (False, True)[: 1 + compiles(compile, device)]:
        for dtype in dtypes:
            ways[f"sample.py, {dtype}{', compiled' * compiled}"] = lambda d=dtype, c=compiled: ours(d, c)
    if with_transformers:
        ways[f"transformers, {fast}"] = lambda: theirs(fast)
    return ways
