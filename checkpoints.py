"""
Checkpoints: a model as a file. Plain types and tensors only, so that loading one runs nothing.

    {"model": weights by llama2.c's names, "model_args": ModelArgs' fields, "tokenizer": its files,
     "config", "iter_num", "best_val_loss", "optimizer", ...: what else a resumed run needs (see train.py)}

llama2.c's own checkpoints have "model" and "model_args", and load too.
"""

import os
import pickle
from dataclasses import asdict

import torch

import model as M
from configurator import atomic_write, first_line


def load_checkpoint(path, mmap=False) -> dict:
    """
    A .pt file of ours or llama2.c's as a dict of plain types and tensors, on the CPU. Nothing in it can
    run; ValueError where it is cut off or no checkpoint. Not promised: that flipped bits in the weights are
    noticed.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise ValueError(f"no checkpoint at {path}: train one with python train.py") from None
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is no checkpoint, or holds more than tensors and plain types") from None
    except Exception as error:  # of damaged files torch.load raises whatever it trips over
        raise ValueError(f"{path} is not a whole checkpoint: {first_line(error)}") from None
    known = isinstance(checkpoint, dict) and (checkpoint.get("model"), checkpoint.get("model_args"))
    if not known or not all(isinstance(part, dict) for part in known):
        raise ValueError(f"{path} is not a checkpoint: it has no model and model_args")
    return checkpoint


def save_checkpoint(state, path):
    """Write a checkpoint whole or not at all. OSError names the path where the disk is full."""
    with atomic_write(path, "wb") as f:
        try:
            torch.save(state, f)
        except RuntimeError as error:  # how torch.save passes on that the disk is full
            cause = error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, path) from None


def newest_state(out_dir) -> dict:
    """The checkpoint that a run in `out_dir` goes on from; ValueError where none holds a run's state."""
    paths = [os.path.join(out_dir, name) for name in ("last.pt", "ckpt.pt")]
    found = [path for path in paths if os.path.exists(path)]
    if not found:
        raise ValueError(f"nothing to resume in {out_dir}: neither last.pt nor ckpt.pt")
    newest = max(found, key=os.path.getmtime)  # an earlier run may have left a ckpt.pt of a later step
    checkpoint = load_checkpoint(newest)
    if not {"optimizer", "iter_num", "best_val_loss"} <= checkpoint.keys():
        raise ValueError(f"{newest} holds no state of a run: begin a new one with --init_from={newest}")
    return checkpoint


def build_model(checkpoint: dict, **changes) -> M.Transformer:
    """The model of a checkpoint; `changes` replace model_args that cost no weights (max_seq_len, dropout)."""
    prefix = "_orig_mod."  # torch.compile's, in checkpoints of the lineage
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["model"].items()}
    model_args = dict(checkpoint["model_args"])
    if "tie_embeddings" not in model_args and "output.weight" in weights:
        tied = torch.equal(weights["output.weight"], weights["tok_embeddings.weight"])
        model_args["tie_embeddings"] = tied
    try:
        model = M.Transformer(M.ModelArgs(**model_args | changes))
    except TypeError as error:
        raise ValueError(f"the checkpoint is of another kind of model: {error}") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise ValueError(f"the checkpoint's weights do not fit its model_args: {reason[:300]}") from None
    return model


def plain_args(args: M.ModelArgs) -> dict:
    """model_args for a checkpoint; those that llama2.c does not know only where they say something new."""
    unsaid = (("rope_theta", 10000.0), ("tie_embeddings", True))
    return {k: v for k, v in asdict(args).items() if (k, v) not in unsaid}
