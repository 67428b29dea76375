"""
The data sets that the course downloads, from two hubs: Hugging Face, and ModelScope, which is in China.

tinystories.py download and prepare_data.py download come here. --hub names the hub that is asked first; the
other one is asked where that has not got the file, or does not answer. HF_ENDPOINT and MODELSCOPE_ENDPOINT
name mirrors. The names on ModelScope are those that others use; nobody has tried them from here.
"""

import glob
import itertools
import os
import re
import shutil
import tarfile
import urllib.request

import huggingface_hub

from configurator import InputError, as_input_error, atomic_write, first_sentence
from extras import import_optional

TIMEOUT = 20  # seconds for a hub to answer
STORIES = {"huggingface": "roneneldan/TinyStories", "modelscope": "AI-ModelScope/TinyStories"}
FILES = {  # a file: {a hub that has it: the data set there}
    "TinyStories_all_data.tar.gz": STORIES,
    "TinyStoriesV2-GPT4-valid.txt": STORIES,
    "train_3.5M_CN.json": {"huggingface": "BelleGroup/train_3.5M_CN", "modelscope": "swift/train_3.5M_CN"},
    "mobvoi_seq_monkey_general_open_corpus.jsonl.tar.bz2": {"modelscope": "ddzhu123/seq-monkey"},
}


def download_file(name, folder, hub):
    """Get a file completely, with the hub's package; its path."""

    def get(hub, repo):
        if hub == "modelscope":
            import_optional("modelscope", "this hub")
        open_url(hub, repo, name).close()  # the packages would try for minutes
        if hub == "huggingface":
            return huggingface_hub.hf_hub_download(repo, name, repo_type="dataset", local_dir=folder)
        from modelscope.hub.file_download import dataset_file_download

        return dataset_file_download(repo, name, local_dir=folder)

    return ask(name, f"{folder}/{name}", hub, get)


def download_lines(name, folder, hub, count, unpack):
    """Get the first lines that unpack(stream) yields, and not the rest; their path. It needs no package."""
    path = f"{folder}/{name.removesuffix('.tar.bz2')}"

    def get(hub, repo):
        with open_url(hub, repo, name) as stream, atomic_write(path, "wb") as f:
            print(f"taking its first {count:,} lines")
            f.writelines(itertools.islice(unpack(stream), count))
            if stream.isclosed() and stream.length:
                raise InputError(f"the connection ended {stream.length:,} bytes before the file")

    return ask(name, path, hub, get)


def ask(name, path, first, get):
    """get(hub, repo) of the first hub that answers, unless path is there; the path."""
    if os.path.exists(path):
        print(f"{path} is there already: remove it to download it again")
        return path
    errors = []
    for hub, repo in sorted(FILES[name].items(), key=lambda item: item[0] != first):
        try:
            get(hub, repo)
            return path
        except Exception as error:  # of the hub, the connection, the disk
            errors.append(f"{repo} on {hub}: {first_sentence(error)}")
    raise InputError(f"could not download {name}: {'; '.join(errors)}")


def open_url(hub, repo, name):
    """A file on a hub as a stream of bytes. Prints its size."""
    url = huggingface_hub.hf_hub_url(repo, name, repo_type="dataset")
    if hub == "modelscope":
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn").rstrip("/")
        url = f"{endpoint}/api/v1/datasets/{repo}/repo?Revision=master&FilePath={name}"
    stream = urllib.request.urlopen(url, timeout=TIMEOUT)
    print(f"{name}, {int(stream.headers.get('Content-Length', 0)) / 1e6:,.1f} MB, of {repo} on {hub}")
    return stream


def unpack(path, folder):
    """Write the files of a .tar.gz into a folder. InputError for a name that could lead out of it."""
    with as_input_error(f"{path} cannot be unpacked"), tarfile.open(path) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):  # extractall is safe from 3.10.12 and 3.11.4 on
            if not re.fullmatch(r"(\./)?[\w.-]+", member.name):
                raise tarfile.TarError(f"{member.name} leads out of the folder")
            with open(f"{folder}/{member.name}", "wb") as f:
                shutil.copyfileobj(tar.extractfile(member), f)
        if not glob.glob("data*.json", root_dir=folder):
            raise tarfile.TarError("it holds no stories")
