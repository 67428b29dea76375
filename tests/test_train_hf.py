"""extras/train_hf.py with a small model and no network."""

import json
import os
import re

import pytest
import tokenizers

import tinystories
from tests.fixtures import flags, run

transformers = pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("accelerate")
pytest_plugins = ["tests.fixtures"]


def write_small_qwen(folder, stories):
    """A small Qwen2 without weights. As in Qwen's, the pad token is the end token."""
    tk = tokenizers.ByteLevelBPETokenizer()
    tk.train_from_iterator(stories, vocab_size=1000, special_tokens=["<|endoftext|>"], show_progress=False)
    tk.save(f"{folder}/tokenizer.json")
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", **names)
    fast.save_pretrained(folder)
    transformers.Qwen2Config(
        vocab_size=1024, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    ).save_pretrained(folder)  # fmt: skip


def test_train_hf_learns_resumes_and_its_model_stops_at_the_end_token(data, tmp_path):
    stories, out = f"{data}/TinyStories_all_data", tmp_path / "out"
    write_small_qwen(tmp_path, tinystories.read_texts(f"{stories}/data01.json"))
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{tmp_path}/cache", "OMP_NUM_THREADS": "1"}
    options = flags(
        model=tmp_path, stories=stories, out_dir=out, block_size=128, batch_size=8, eval_blocks=16,
        gradient_accumulation_steps=1, learning_rate=3e-3, logging_steps=5, save_steps=20, init="random",
        device="cpu",
    )  # fmt: skip
    first, _ = run("extras.train_hf", *options, "--max_steps=20", env=env)
    assert int(re.search(r"(\d+) of 2,048 labels for validation are '<\|endoftext\|>'", first)[1]) > 0
    second, _ = run("extras.train_hf", "train", *options, "--max_steps=40", "--resume=True", env=env)
    assert (first.count("'loss'"), second.count("'loss'")) == (4, 4)  # the second begins at step 20
    log = json.loads((out / "checkpoint-40" / "trainer_state.json").read_bytes())["log_history"]
    for key, fall in (("loss", 0.5), ("eval_loss", 0)):
        values = [row[key] for row in log if key in row]
        assert values[-1] < values[0] - fall
    options = flags(model=out, temperature=1, max_new_tokens=2000, device="cpu")
    text, _ = run("extras.train_hf", "sample", *options, env=env)
    assert text.startswith("Once upon a time") and "<|endoftext|>" not in text
    assert len(transformers.AutoTokenizer.from_pretrained(str(out)).encode(text)) < 1500
    said = run("extras.train_hf", f"--model={tmp_path}", f"--out_dir={out}", ok=False, env=env)[1]
    assert "--resume=True" in said.splitlines()[-1]  # two runs in one folder are refused
