"""
Continues the pretraining of a model of the transformers library on the stories, and samples from it.

Reads  --model, Qwen2.5-0.5B as in the tutorial, and the stories in data/TinyStories_all_data
       (python tinystories.py download)
Writes output_hf/checkpoint-N every save_steps, and output_hf itself at the end: folders for
       AutoModelForCausalLM, and for the command `sample`, which prints its text

    pip install transformers datasets accelerate
    python -m extras.train_hf --model=Qwen/Qwen2.5-0.5B     or the folder of any causal LM with its tokenizer
    python -m extras.train_hf --init=random                 its architecture only, with random parameters
    python -m extras.train_hf --resume=True                 resumes from the newest checkpoint in out_dir
    python -m extras.train_hf sample --model=output_hf --prompt="One day, Lily"
    python -m extras.train_hf sample --model=Qwen/Qwen2.5-0.5B-Instruct --chat=True --prompt="Who are you?"

On several GPUs, each with the whole model; on several machines; with the model sharded (FSDP):

    torchrun --nproc_per_node=8 -m extras.train_hf
    torchrun --nproc_per_node=8 --nnodes=2 --node_rank=0 --master_addr=HOST -m extras.train_hf
    accelerate launch --num_processes=8 --use_fsdp --fsdp_version=2 -m \\
        --fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP --fsdp_state_dict_type=FULL_STATE_DICT extras.train_hf

(FULL_STATE_DICT: whole models are written, not one part for each GPU.)

A step is batch_size x gradient_accumulation_steps x (number of GPUs) blocks. Each parameter takes 16 bytes:
itself, its gradient and AdamW's two moments, in float32. That is 8 GB for Qwen2.5-0.5B.
"""

import itertools
import sys
from pathlib import Path

import torch

from configurator import InputError, first_sentence, override
from devices import find_device, find_dtype
from extras import import_optional

model = "Qwen/Qwen2.5-0.5B"  # a folder, or a name on the Hub
init = "pretrained"  # pretrained | random: the model's parameters, or its architecture alone
stories = "data/TinyStories_all_data"  # a folder of dataNN.json; the first is for validation
out_dir = "output_hf"  # where checkpoints are written
resume = False  # resume from the newest checkpoint in out_dir
block_size = 512  # tokens in a sequence
batch_size = 4  # sequences in a micro-batch, on each device
gradient_accumulation_steps = 8  # micro-batches in a step, on each device
learning_rate = 5e-5  # the highest; falls linearly to 0 over the run
num_train_epochs = 1.0  # passes over the stories
max_steps = -1  # steps, instead of epochs; -1: as many as the epochs have
logging_steps = 100  # steps between two lines of the log
save_steps = 1000  # steps between two checkpoints, and between two evaluations
save_total_limit = 2  # checkpoints that are kept, the newest; Qwen2.5-0.5B's have 6 GB each
eval_blocks = 500  # sequences of the validation shard in an evaluation
prompt = "Once upon a time"  # sample: how the text begins; with --chat, the question
chat = False  # sample: answer the prompt, for models with a chat template
max_new_tokens = 256  # sample: at most
temperature = 0.8  # sample: 0 takes the likeliest token; below 1 sharpens the probabilities
top_k = 300  # sample: only the k likeliest tokens; 0: all
top_p = 0.95  # sample: only the likeliest tokens that make up this probability; 1: all
device = "auto"  # auto | cpu: cuda or mps if there is one
seed = 1337  # at least 0, below 4e9: of the order of the data, of random parameters, and of sampling

COMMANDS = ("train", "sample")
if len(sys.argv) == 1 or sys.argv[1].startswith("-"):
    sys.argv.insert(1, "train")  # if no command is given
command = override(globals(), COMMANDS)["command"]

transformers = import_optional("transformers", "extras.train_hf")
transformers.set_seed(seed)


def from_pretrained(auto_class, **settings):
    """A tokenizer, config or model of --model."""
    try:
        return auto_class.from_pretrained(model, **settings)
    except Exception as error:  # transformers', tokenizers' and safetensors' errors have no common class
        raise InputError(f"--model={model} cannot be loaded: {first_sentence(error)}") from None


def sample():
    """Print the prompt and its continuation, or the answer to it, as the words come, up to the end token."""
    if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError("max_new_tokens must be above 0, temperature and top_k not below 0, 0 < top_p <= 1")
    tokenizer = from_pretrained(transformers.AutoTokenizer)
    if chat and not tokenizer.chat_template:
        raise InputError(f"{model} has no chat template")
    lm = from_pretrained(transformers.AutoModelForCausalLM, dtype="auto").to(find_device(device))
    text = prompt
    if chat:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, add_special_tokens=not chat, return_tensors="pt")
    if inputs["input_ids"].numel() == 0:
        raise InputError(f"the tokenizer of {model} has no token that begins a text: give a --prompt")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature else {}
    settings |= {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True)
    lm.generate(**inputs.to(lm.device), **settings, streamer=streamer)


if command == "sample":
    sys.exit(sample())

datasets = import_optional("datasets", "training")
import_optional("accelerate", "training")
found_device = find_device(device)
dtype = next((d for d in ("bfloat16", "float16") if find_dtype(d, found_device) == d), "float32")
args = transformers.TrainingArguments(
    output_dir=out_dir, report_to="none", seed=seed, use_cpu=found_device == "cpu",
    per_device_train_batch_size=batch_size, per_device_eval_batch_size=batch_size,
    gradient_accumulation_steps=gradient_accumulation_steps, learning_rate=learning_rate,
    num_train_epochs=num_train_epochs, max_steps=max_steps, logging_steps=logging_steps,
    save_steps=save_steps, save_total_limit=save_total_limit, eval_strategy="steps", eval_steps=save_steps,
    bf16=dtype == "bfloat16", fp16=dtype == "float16", ddp_find_unused_parameters=False,
)  # fmt: skip
if resume != any(Path(out_dir).glob("checkpoint-*")):
    problem = "no run" if resume else "a run: --resume=True resumes it, another --out_dir begins a new one"
    raise InputError(f"{out_dir} holds {problem}")
if not resume and Path(out_dir, "config.json").exists():
    raise InputError(f"{out_dir} holds a model, which would be overwritten: give another --out_dir")

tokenizer = from_pretrained(transformers.AutoTokenizer)
if tokenizer.eos_token_id is None:
    raise InputError(f"the tokenizer of {model} has no end token")
files = sorted(map(str, Path(stories).glob("data*.json")))
if len(files) < 2:
    raise InputError(f"{stories} needs two files dataNN.json or more: run python tinystories.py download")


def process_func(examples):
    """
    Stories -> full blocks: each story and its end token, all in a row, cut every block_size tokens. What
    is left at the end of a batch of 1000 stories is dropped.

    Padding each story to the same length, as is often done, has a trap: Qwen's padding token is its end
    token, and padding is left out of the loss. Then no label ever says "end here", and the model never
    learns to stop. In full blocks nothing is padding, and every token is a label.
    """
    ids = [i + [tokenizer.eos_token_id] for i in tokenizer(examples["story"])["input_ids"]]
    row = list(itertools.chain.from_iterable(ids))
    blocks = [row[i : i + block_size] for i in range(0, len(row) - block_size + 1, block_size)]
    return {"input_ids": blocks, "labels": blocks}  # the model itself shifts the labels by one


raw = datasets.load_dataset("json", data_files={"train": files[1:], "val": files[:1]})
raw["val"] = raw["val"].select(range(min(len(raw["val"]), 4 * eval_blocks)))  # a block is about two stories
with args.main_process_first(desc="tokenize"):  # the other processes find its result in the cache
    blocks = raw.map(process_func, batched=True, remove_columns=raw["train"].column_names)
if not len(blocks["train"]) or not len(blocks["val"]):
    raise InputError(f"{stories} is too short for blocks of {block_size} tokens")
blocks["val"] = blocks["val"].select(range(min(eval_blocks, len(blocks["val"]))))

# In float32 even if the file has bfloat16: its 8 bits round AdamW's small steps to none at all. The products
# run in bfloat16 or float16 all the same (autocast).
if init == "random":
    config = from_pretrained(transformers.AutoConfig)
    lm = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
else:
    lm = from_pretrained(transformers.AutoModelForCausalLM, dtype=torch.float32)
if len(tokenizer) > lm.config.vocab_size:
    raise InputError(f"the tokenizer has {len(tokenizer)} tokens, the model {lm.config.vocab_size} ids")

trainer = transformers.Trainer(
    model=lm, args=args, processing_class=tokenizer, data_collator=transformers.default_data_collator,
    train_dataset=blocks["train"], eval_dataset=blocks["val"],
)  # fmt: skip
if trainer.is_world_process_zero():
    n_blocks = len(blocks["train"])
    print(f"{lm.num_parameters():,} parameters; {n_blocks:,} blocks of {block_size} tokens; {dtype}")
    n_labels = len(blocks["val"]) * block_size
    n_ends = sum(row.count(tokenizer.eos_token_id) for row in blocks["val"]["labels"])
    print(f"{n_ends:,} of {n_labels:,} labels for validation are {tokenizer.eos_token!r}")
trainer.train(resume_from_checkpoint=resume or None)
loss = trainer.evaluate()["eval_loss"]
trainer.save_model(out_dir)
if trainer.is_world_process_zero():
    print(f"finished: validation loss {loss:.4f}; python -m extras.train_hf sample --model={out_dir}")
