"""Where Python waits for a GPU, found without one: see fake_cuda.py. tests/test_cuda.py is for a real one."""

import collections
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch

from tests.fixtures import SMALL, chat_rows, flags, random_checkpoint, run
from tokenizer import Tokenizer

pytest_plugins = ["tests.fixtures"]
can_fake = sys.platform == "linux" and shutil.which("g++") and not torch.version.cuda
pytestmark = pytest.mark.skipif(not can_fake, reason="needs Linux, g++ and a CPU build of torch")


def find_waits(*command, capability="9.0"):
    """{(step, functions, what): how often} for a script on the fake device."""
    printed, _ = run("tests/fake_cuda.py", *command, env=os.environ | {"CAPABILITY": capability})
    found = re.findall(r"(?m)^WAIT (\S+) (\S*) (\d+) (.*)$", printed)
    return {(step, functions, what): int(times) for step, functions, times, what in found}


def check_training(*options, capability="9.0"):
    """Six steps of which two are logged, two evaluations, and stories of at most 16 tokens."""
    length = {"max_iters": 6, "log_interval": 3, "eval_interval": 6, "max_seq_len": 16}
    waits = find_waits("train.py", *SMALL, *flags(device="cuda", **length), *options, capability=capability)
    in_steps, in_evaluation, in_stories = (collections.Counter() for _ in range(3))
    for (step, functions, what), times in waits.items():
        if "estimate_loss" in functions:
            in_evaluation[step, what] += times
        elif "evaluate" in functions:
            in_stories[step] += times
        elif step != "None" and "save_checkpoint" not in functions:  # None: before the first step
            in_steps[step, what] += times
    assert in_steps == {("0", "number"): 1, ("3", "number"): 1}
    assert in_evaluation == {("0", "number"): 2, ("6", "number"): 2}  # once for each split
    return in_stories


def test_pretraining_waits_in_logged_steps_only(data, tmp_path):
    """With AdamW, in bfloat16."""
    in_stories = check_training(*flags(data_dir=data, out_dir=tmp_path, dtype="bfloat16"))
    assert in_stories.keys() == {"0", "6"}
    assert all(times <= 16 + 4 for times in in_stories.values())  # once for each token, and to begin and end


def test_fine_tuning_on_documents_waits_in_logged_steps_only(tmp_path):
    """With Muon, on a T4, where bfloat16 becomes float16."""
    chat_rows(tmp_path, np.full((60, 17), 2, "u1"), 512)
    base = random_checkpoint(tmp_path / "base.pt", vocab_size=512)
    options = flags(init_from=base, vocab_source=tmp_path, out_dir=tmp_path / "out", optimizer="muon")
    check_training(*options, "--dtype=bfloat16", capability="7.5")


def test_sampling_waits_once_a_token(data, tmp_path):
    tokenizer = Tokenizer(f"{data}/tok512.model").state()
    path = random_checkpoint(tmp_path / "ckpt.pt", tokenizer, vocab_size=512)
    waits = find_waits("sample.py", *flags(checkpoint=path, device="cuda", max_new_tokens=30))
    times = sum(times for (_, functions, _), times in waits.items() if "stream" in functions)
    assert 30 <= times <= 30 + 3
