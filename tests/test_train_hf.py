"""extras/train_hf.py with small models and no network."""

import json
import os
import re
from pathlib import Path

import pytest
import tokenizers
import torch

from extras import export
from model import Transformer, load_checkpoint
from tests.fixtures import SHARED, needs_shared, random_checkpoint, run, user

transformers = pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("accelerate")
pytest_plugins = ["tests.fixtures"]
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def small_qwen(tmp_path_factory):
    """The folder of a small Qwen2 without weights. As in Qwen's, the pad token is the end token."""
    folder = str(tmp_path_factory.mktemp("qwen"))
    stories = json.loads(Path(SHARED, "tinystories", "data01.json").read_bytes())
    tk = tokenizers.ByteLevelBPETokenizer()
    options = {"vocab_size": 1000, "special_tokens": ["<|endoftext|>"], "show_progress": False}
    tk.train_from_iterator([s["story"] for s in stories], **options)
    tk.save(f"{folder}/tokenizer.json")
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", **names)
    fast.save_pretrained(folder)
    transformers.Qwen2Config(
        vocab_size=1024, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@needs_shared
def test_train_hf_learns_resumes_and_its_model_stops_at_the_end_token(tmp_path, small_qwen):
    out = tmp_path / "out"
    options = [f"--model={small_qwen}", f"--stories={SHARED}/tinystories", f"--out_dir={out}",
               "--block_size=128", "--batch_size=8", "--gradient_accumulation_steps=1",
               "--learning_rate=3e-3", "--logging_steps=5", "--save_steps=20", "--eval_blocks=16",
               "--init=random", "--device=cpu"]  # fmt: skip
    env = OFFLINE | {"HF_HOME": str(tmp_path / "cache")}
    first, _ = run("extras.train_hf", *options, "--max_steps=20", env=env)
    assert int(re.search(r"(\d+) of 2,048 labels for validation are '<\|endoftext\|>'", first)[1]) > 0
    second, _ = run("extras.train_hf", "train", *options, "--max_steps=40", "--resume=True", env=env)
    assert (first.count("'loss'"), second.count("'loss'")) == (4, 4)  # the second begins at step 20
    log = json.loads((out / "checkpoint-40" / "trainer_state.json").read_bytes())["log_history"]
    for key, fall in (("loss", 0.5), ("eval_loss", 0)):
        values = [row[key] for row in log if key in row]
        assert values[-1] < values[0] - fall
    options = (f"--model={out}", "--temperature=1", "--max_new_tokens=2000", "--device=cpu")
    text, _ = run("extras.train_hf", "sample", *options, env=env)
    assert text.startswith("Once upon a time") and "<|endoftext|>" not in text
    assert len(transformers.AutoTokenizer.from_pretrained(str(out)).encode(text)) < 1500
    said = run("extras.train_hf", f"--model={small_qwen}", f"--out_dir={out}", ok=False, env=env)[1]
    assert "--resume=True" in said.splitlines()[-1]  # two runs in one folder are refused


def test_sample_answers_in_the_chat_format(tok, tmp_path):
    path = random_checkpoint(tmp_path / "ckpt.pt", tok.state(), vocab_size=tok.n_words, tie_embeddings=False)
    export.write_hf(*export.load_weights(path), str(tmp_path / "hf"))
    options = (f"--model={tmp_path}/hf", "--temperature=0", "--device=cpu", "--max_new_tokens=8")
    printed, _ = run("extras.train_hf", "sample", *options, "--chat=True", "--prompt=你好！", env=OFFLINE)
    ids, _ = tok.encode_chat([user("你好！")], add_generation_prompt=True)
    model = Transformer.from_checkpoint(load_checkpoint(path)).eval()
    out = model.generate(torch.tensor([ids]), 8, temperature=0, stop_ids=(tok.bos_id, tok.eos_id))
    assert printed.rstrip("\n") == tok.decode(out[0, len(ids) :].tolist())
