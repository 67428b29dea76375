"""extras/train_hf.py, with a small model and no network."""

import json
import os
import re

import pytest

from sample import TextGenerator
from tests.fixtures import SHARED, needs_shared, read_bytes, run

pytest_plugins = ["tests.fixtures"]


@pytest.fixture(scope="module")
def small_qwen(tmp_path_factory):
    """The folder of a small Qwen2 without weights. As in Qwen's, the pad token is the end token."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    folder = str(tmp_path_factory.mktemp("qwen"))
    tk = tokenizers.Tokenizer(tokenizers.models.BPE())
    tk.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tk.decoder = tokenizers.decoders.ByteLevel()
    stories = json.loads(read_bytes(os.path.join(SHARED, "tinystories", "data01.json")))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tk.train_from_iterator([s["story"] for s in stories], trainer)
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tk, **names).save_pretrained(folder)
    transformers.Qwen2Config(
        vocab_size=1024, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@needs_shared
def test_train_hf_learns_resumes_and_its_model_stops_at_the_end_token(tmp_path, small_qwen):
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    out = tmp_path / "out"
    knobs = [f"--model={small_qwen}", "--init=random", f"--stories={SHARED}/tinystories", f"--out_dir={out}",
             "--block_size=128", "--batch_size=8", "--gradient_accumulation_steps=1", "--learning_rate=3e-3",
             "--logging_steps=5", "--save_steps=20", "--eval_blocks=16", "--device=cpu"]  # fmt: skip
    env = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    first, _ = run("extras.train_hf", *knobs, "--max_steps=20", env=env)
    assert int(re.search(r"(\d+) of 2,048 labels for validation are '<\|endoftext\|>'", first)[1]) > 0
    assert sorted(p for p in os.listdir(out) if "checkpoint" in p) == ["checkpoint-20"]

    run("extras.train_hf", *knobs, "--max_steps=40", "--resume=True", env=env)
    log = json.loads(read_bytes(out / "checkpoint-40" / "trainer_state.json"))["log_history"]
    losses = [row["loss"] for row in log if "loss" in row]
    assert [row["step"] for row in log if "loss" in row] == [5, 10, 15, 20, 25, 30, 35, 40]  # one run
    assert losses[-1] < losses[0] - 0.5
    evaluations = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert evaluations[1] < evaluations[0]

    generator = TextGenerator(str(out))
    end = generator.tokenizer.eos_id
    new = [i for (i,) in generator.stream(generator.encode("Once upon a time"), 1, 3000, 1.0)]
    assert new[-1] == end and end not in new[:-1] and len(new) < 3000


@needs_shared
def test_train_hf_does_not_mix_two_runs(tmp_path, small_qwen):
    pytest.importorskip("datasets")
    os.makedirs(tmp_path / "out" / "checkpoint-9000")
    said = run("extras.train_hf", f"--model={small_qwen}", f"--out_dir={tmp_path}/out", ok=False)[1]
    assert "--resume=True" in said.splitlines()[-1]
