"""
The same pretraining with the transformers library: a language model from a folder or the Hub goes on
learning from the stories.

Reads  --model, Qwen2.5-0.5B as in the tutorial, and the stories in data/TinyStories_all_data
       (python tinystories.py download)
Writes output_hf/checkpoint-N every save_steps, and output_hf itself at the end: folders for
       python sample.py --checkpoint=FOLDER, and for AutoModelForCausalLM

    pip install transformers datasets accelerate
    python -m extras.train_hf --model=Qwen/Qwen2.5-0.5B     or the folder of any causal LM with its tokenizer
    python -m extras.train_hf --init=random                 its architecture only: from random weights
    python -m extras.train_hf --resume=True                 go on from the newest checkpoint in out_dir

On several GPUs, each with all of the model; on several machines; with the model shared out (FSDP):

    torchrun --nproc_per_node=8 -m extras.train_hf
    torchrun --nproc_per_node=8 --nnodes=2 --node_rank=0 --master_addr=HOST --master_port=29500 \\
        -m extras.train_hf
    accelerate launch --num_processes=8 --use_fsdp --fsdp_version=2 \\
        --fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP --fsdp_state_dict_type=FULL_STATE_DICT \\
        -m extras.train_hf

The last of these options has whole models written, in place of one part for each GPU.

A step is batch_size x gradient_accumulation_steps x (number of GPUs) blocks. Weights, gradients and AdamW's
two moments take 16 bytes a weight: 8 GB for Qwen2.5-0.5B.
"""

import glob
import importlib.util
import itertools
import os

import torch

from configurator import override
from devices import find_device, find_dtype

model = "Qwen/Qwen2.5-0.5B"  # a folder, or a name on the Hub
init = "pretrained"  # pretrained | random: the model's weights, or its architecture alone
stories = "data/TinyStories_all_data"  # a folder of dataNN.json; the first is for validation
out_dir = "output_hf"  # where checkpoints go
resume = False  # go on from the newest checkpoint in out_dir
block_size = 512  # tokens in a sequence
batch_size = 4  # sequences in a micro-batch, on each device
gradient_accumulation_steps = 8  # micro-batches in a step, on each device
learning_rate = 5e-5  # the highest; falls linearly to 0 over the run
num_train_epochs = 1.0  # passes over the stories
max_steps = -1  # steps, in place of epochs; -1: as many as the epochs have
logging_steps = 100  # steps between two lines of the log
save_steps = 1000  # steps between two checkpoints, and between two evaluations
save_total_limit = 2  # checkpoints that are kept, the newest; Qwen2.5-0.5B's have 6 GB each
eval_blocks = 500  # sequences of the validation shard in an evaluation
device = "auto"  # auto | cpu: cuda or mps where it is there
seed = 1337  # of the order of the data, and of random weights

override(globals())

missing = [p for p in ("transformers", "datasets", "accelerate") if not importlib.util.find_spec(p)]
if missing:
    raise ValueError(f"packages are missing for this script: pip install {' '.join(missing)}")
from datasets import load_dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)  # fmt: skip


def process_func(examples):
    """
    Stories -> full blocks: the end token behind each story, all in a row, cut every block_size tokens. What
    is left at the end of a batch of 1000 stories is dropped.

    Padding each story to the same length, as is often done, has a trap: Qwen's padding token is its end
    token, and padding is left out of the loss. Then no label ever says "end here", and the model never
    learns to stop. In full blocks nothing is padding, and every token is a label.
    """
    ids = [i + [tokenizer.eos_token_id] for i in tokenizer(examples["story"])["input_ids"]]
    row = list(itertools.chain.from_iterable(ids))
    blocks = [row[i : i + block_size] for i in range(0, len(row) - block_size + 1, block_size)]
    return {"input_ids": blocks, "labels": blocks}  # the model itself shifts the labels by one


# --------------------------------------------------------------------------------------------------------
# settings

found = find_device(device)
dtype = next((d for d in ("bfloat16", "float16") if find_dtype(d, found) == d), "float32")
args = TrainingArguments(
    output_dir=out_dir, per_device_train_batch_size=batch_size, per_device_eval_batch_size=batch_size,
    gradient_accumulation_steps=gradient_accumulation_steps, learning_rate=learning_rate,
    num_train_epochs=num_train_epochs, max_steps=max_steps, logging_steps=logging_steps,
    save_steps=save_steps, save_total_limit=save_total_limit, eval_strategy="steps", eval_steps=save_steps,
    bf16=dtype == "bfloat16", fp16=dtype == "float16", use_cpu=found == "cpu", seed=seed, report_to="none",
    ddp_find_unused_parameters=False,
)  # fmt: skip
if not resume and glob.glob(os.path.join(glob.escape(out_dir), "checkpoint-*")):
    raise ValueError(f"{out_dir} holds a run: --resume=True goes on, another --out_dir begins a new one")
set_seed(seed)

# --------------------------------------------------------------------------------------------------------
# data

tokenizer = AutoTokenizer.from_pretrained(model)
if tokenizer.eos_token_id is None:
    raise ValueError(f"the tokenizer of {model} has no end token")
files = sorted(glob.glob(os.path.join(glob.escape(stories), "data*.json")))
if len(files) < 2:
    raise ValueError(f"{stories} needs two files dataNN.json or more: run python tinystories.py download")
raw = load_dataset("json", data_files={"train": files[1:], "val": files[:1]})
raw["val"] = raw["val"].select(range(min(len(raw["val"]), 4 * eval_blocks)))  # a block is about two stories
with args.main_process_first(desc="tokenize"):  # the other processes find its result in the cache
    blocks = raw.map(process_func, batched=True, remove_columns=raw["train"].column_names)
if not len(blocks["train"]) or not len(blocks["val"]):
    raise ValueError(f"{stories} is too short for blocks of {block_size} tokens")
blocks["val"] = blocks["val"].select(range(min(eval_blocks, len(blocks["val"]))))

# --------------------------------------------------------------------------------------------------------
# model

if init == "random":
    lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.float32)
else:
    # In float32 even where the file has bfloat16: its 8 bits round AdamW's small steps to none at all. The
    # products run in bfloat16 or float16 all the same (autocast).
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
if len(tokenizer) > lm.config.vocab_size:
    raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {lm.config.vocab_size} ids")

# --------------------------------------------------------------------------------------------------------
# the work

trainer = Trainer(
    model=lm, args=args, train_dataset=blocks["train"], eval_dataset=blocks["val"],
    processing_class=tokenizer, data_collator=default_data_collator,
)  # fmt: skip
if trainer.is_world_process_zero():
    ends = sum(row.count(tokenizer.eos_token_id) for row in blocks["val"]["labels"])
    print(
        f"{lm.num_parameters():,} weights; {len(blocks['train']):,} blocks of {block_size} tokens; {dtype}"
    )
    print(
        f"{ends:,} of {len(blocks['val']) * block_size:,} labels for validation are {tokenizer.eos_token!r}"
    )
trainer.train(resume_from_checkpoint=resume or None)
loss = trainer.evaluate()["eval_loss"]
trainer.save_model(out_dir)
if trainer.is_world_process_zero():
    print(f"finished: validation loss {loss:.4f}; python sample.py --checkpoint={out_dir} writes a story")
