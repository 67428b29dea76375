"""
Folders of transformers: which of them hold a model of model.py, where its texts end, and how a new one is
written. Called by export.py.
"""

import contextlib
import os
import shutil
from pathlib import Path

from configurator import InputError, read_json
from extras import import_optional
from model import ModelArgs
from tokenizer import FOLDER_FILES

CONFIG_NAMES = {  # ModelArgs' names and LlamaConfig's
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}


def read_config(folder):
    """(args, LlamaConfig, stop_ids) of a folder of LlamaForCausalLM. InputError says why it is not ours."""
    transformers = import_optional("transformers", f"{folder}, a folder,")
    path = Path(folder, "config.json")
    if not path.exists():
        raise InputError(f"{folder} is not a model of transformers': it holds no config.json")
    if Path(folder, "adapter_config.json").exists():
        raise InputError(f"{folder} holds an adapter (PEFT): merge it into its model first, and save that")
    saved = read_json(path)
    model_type = saved.get("model_type")
    names = saved.get("architectures") or [model_type]
    if model_type != "llama" or names not in (["LlamaForCausalLM"], ["llama"]):
        name = " ".join(names) if isinstance(names, list) else names
        raise InputError(f"{folder} is a {name} ({model_type}): only llama's LlamaForCausalLM fits model.py")
    try:
        config = transformers.LlamaConfig.from_dict(saved)
        for part in foreign_parts(config):
            raise InputError(f"{folder} cannot become a checkpoint: model.py does not have {part}")
        shape = {ours: getattr(config, hf) for ours, hf in CONFIG_NAMES.items()}
        args = ModelArgs(**shape, rope_theta=float(config.rope_parameters["rope_theta"]))
    except InputError:
        raise
    except Exception as error:  # transformers checks some values, each with an error of its own
        raise InputError(f"{path} is broken: {' '.join(str(error).split())[:200]}") from None
    return args, config, read_stop_ids(folder, saved)


def foreign_parts(config):
    """What model.py cannot represent, by its name in config.json."""
    rope = config.rope_parameters
    head_dim = config.hidden_size / config.num_attention_heads
    parts = {
        f"rope_scaling ({rope['rope_type']})": rope["rope_type"] != "default",
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1) != 1,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        f"head_dim={config.head_dim}, not hidden_size / num_attention_heads": config.head_dim != head_dim,
        f"hidden_act={config.hidden_act}, not silu": config.hidden_act not in ("silu", "swish"),
        "quantised weights (quantization_config)": hasattr(config, "quantization_config"),
    }
    return [part for part, applies in parts.items() if applies]


def read_stop_ids(folder, saved_config):
    """The ids at which transformers ends a text: a number or a list in generation_config.json."""
    path = Path(folder, "generation_config.json")
    saved = read_json(path) if path.exists() else {}
    found = saved.get("eos_token_id", saved_config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [] if found is None else [found]
    return check_stop_ids(ids, path)


def check_stop_ids(ids, path):
    """ids, if they are a list of ids; otherwise InputError."""
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise InputError(f"{path} is broken: it ends texts at {str(ids)[:80]}, which are no token ids")
    return ids


def check_folder(path):
    """InputError if the folder holds what no export writes: nothing of the user's is deleted."""
    known = {"config.json", "generation_config.json", "model.safetensors", "export.tmp", *FOLDER_FILES}
    others = set(os.listdir(path)) - known if os.path.isdir(path) else set()
    if others:
        raise InputError(f"{path} holds {min(others)}, which is not part of an export: give another --out")


@contextlib.contextmanager
def replace_folder(path):
    """
    A new folder to fill, export.tmp in `path`. When it is complete its files replace an older export's.
    config.json goes first and comes last: a folder without it is no model, neither here nor in transformers.
    """
    check_folder(path)
    is_new = not os.path.exists(path)
    temporary = os.path.join(path, "export.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed export has left
    os.makedirs(temporary)
    try:
        yield temporary
        names = sorted(os.listdir(temporary), key=lambda name: name == "config.json")
        for name in sorted(set(os.listdir(path)) - {"export.tmp"}):
            if name == "config.json" or name not in names:
                os.remove(os.path.join(path, name))
        for name in names:
            os.replace(os.path.join(temporary, name), os.path.join(path, name))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new and not os.listdir(path):
            os.rmdir(path)
