"""
extras/page/ in a real browser: each thing on the page does what it says. Needs chromium and its driver
(Debian: chromium, chromium-driver) and the package selenium.
"""

import json
import math
import shutil
import time

import pytest
import torch

from tests.fixtures import random_checkpoint, system, user
from tests.test_page import float16_model, write_page
from tokenizer import Tokenizer

webdriver = pytest.importorskip("selenium.webdriver", reason="there is no selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium or no chromedriver")
pytest_plugins = ["tests.fixtures"]


class Browser:
    """A page in chromium. `do` runs JavaScript; `text`, `click` and `type` work as a reader does."""

    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--lang=en-US"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def open(self, path, before=""):
        """Open a page; `before` is JavaScript that runs first."""
        self.driver.execute_cdp_cmd("Page.enable", {})
        added = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": before})
        self.driver.get(f"file://{path}")
        self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        self.wait("document.documentElement.dataset.ready")

    def resize(self, width, height=900, **media):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def do(self, script, *args):
        return self.driver.execute_script(script, *args)

    def wait(self, condition, seconds=60):
        end = time.time() + seconds
        while not self.do(f"return ({condition})"):
            assert time.time() < end, condition
            time.sleep(0.02)

    def settle(self):
        """Wait until what was asked is done and drawn."""
        script = """
            const done = arguments[arguments.length - 1];
            const frame = () => new Promise(requestAnimationFrame);
            const drawn = () => frame().then(frame);
            queue.then(drawn).then(() => call("ask", "story", "lens", 0, 1)).then(drawn).then(done);
        """
        self.driver.execute_async_script(script)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.find(selector).text

    def click(self, selector):
        self.find(selector).click()
        self.settle()

    def type(self, selector, text):
        self.find(selector).clear()
        self.find(selector).send_keys(text)
        time.sleep(0.3)  # the page waits until a reader stops typing
        self.settle()

    def slide(self, name, value):
        """Move a slider to a value, one arrow key at a time."""
        slider = self.find(f"#{name}")
        while float(slider.get_attribute("value")) != value:
            up = float(slider.get_attribute("value")) < value
            slider.send_keys("\ue014" if up else "\ue012")  # right, left
        self.settle()

    def ids(self):
        return self.do("return state.ids")

    def chips(self):
        return self.texts("#chips .chip")

    def texts(self, selector):
        script = "return Array.from(document.querySelectorAll(arguments[0]), (node) => node.textContent)"
        return self.do(script, selector)

    def bars(self):
        """[token, probability before, after, whether it is cut off] of each bar."""
        return self.do("""return Array.from(document.querySelectorAll(".bar"), (bar) => {
            const [before, after] = bar.querySelectorAll("i");
            const share = (node) => Number(node.style.getPropertyValue("--p"));
            return [bar.querySelector(".token").textContent, share(before), share(after),
                    bar.classList.contains("cut")];
        })""")

    def heats(self):
        return self.do("return chips.map(({ node }) => Number(node.style.getPropertyValue('--heat')))")

    def log(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """The addresses that anything was asked of."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser():
    found = Browser()
    found.driver.set_script_timeout(60)
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def story_page(trained, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "story.html", f"{trained}/ckpt.pt")


@pytest.fixture
def story(browser, story_page):
    """The page of a story, opened again for each test. No test may leave a message or ask the network."""
    browser.resize(1280)
    browser.open(story_page)
    yield browser
    assert browser.log() == []
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "blob"}


@pytest.fixture(scope="module")
def model(trained):
    return float16_model(f"{trained}/ckpt.pt")


@pytest.fixture(scope="module")
def story_tok(data):
    return Tokenizer(f"{data}/tok512.model")


def test_a_typed_beginning_is_written_on_paused_stepped_and_repeated(story, story_tok):
    assert story.ids() == story_tok.encode("One day, Lily met a Shoggoth", bos=True)
    assert story.do("return call.length === 1 && typeof Worker") == "function"
    story.type("#prompt", 'Tom saw <img src=x onerror="document.title=1"> & ran')
    begun = story_tok.encode('Tom saw <img src=x onerror="document.title=1"> & ran', bos=True)
    assert story.ids() == begun
    assert story.do("return $('chips').textContent") == f"<s> {story_tok.decode(begun)}"
    assert story.do("return document.images.length") == 0 and story.driver.title == "See it think"
    story.find("#play").click()
    story.wait("document.getElementById('play').textContent === 'Pause'")
    story.wait(f"state.ids.length > {len(begun) + 3}")
    story.click("#play")
    assert story.text("#play") in ("Write", "Another")
    written = story.ids()
    time.sleep(0.4)
    assert story.ids() == written and len(story.chips()) == len(written)
    story.click("#back")
    assert story.ids() == written[:-1]
    story.click("#step")
    assert story.ids() == written  # the same seed, the same token
    story.click("#restart")
    assert story.ids() == begun
    for _ in range(3):
        story.click("#step")
    assert story.ids() == written[: len(begun) + 3]
    story.find("#seed").clear()
    story.find("#seed").send_keys("7")
    story.click("#restart")
    for _ in range(3):
        story.click("#step")
    assert story.ids()[: len(begun)] == begun and story.ids() != written[: len(begun) + 3]


def test_a_chip_tells_its_id_bytes_probability_and_rank(story, story_tok, model):
    ids = story.ids()
    story.click("#chips .chip:nth-of-type(1)")
    assert "a special token" in story.text("#detail") and "nothing stands before it" in story.text("#detail")
    story.click("#chips .chip:nth-of-type(4)")
    with torch.inference_mode():
        probs = model(torch.tensor([ids]))[0, 2].softmax(-1)
    p, rank = probs[ids[3]], 1 + int((probs > probs[ids[3]]).sum())
    said = story.text("#detail")
    name = story_tok.piece(ids[3])
    raw = name.replace("▁", " ").encode().hex(" ").upper()
    assert f"id {ids[3]}, bytes {raw}" in said
    assert f"rank {rank} of 512, surprise {-p.log2():.1f} bits" in said and "You wrote it" in said
    assert abs(story.heats()[3] - min(1, -p.log2() / 10)) < 1e-3
    story.find("#chips").send_keys("\ue014")  # right: the next token
    story.settle()
    assert story.do("return state.selected") == 4 and f"id {ids[4]}," in story.text("#detail")
    assert story.find("#chips").get_attribute("aria-activedescendant") == "chip_4"
    story.click("h1")  # the pointer leaves
    story.find("#chips").send_keys("\ue00c")  # Escape
    story.settle()
    assert story.do("return state.selected") is None and "Point at a token" in story.text("#detail")


def test_the_bars_move_with_the_sliders_and_a_click_takes_the_token(story, model):
    with torch.inference_mode():
        logits = model(torch.tensor([story.ids()]))[0, -1]
    story.slide("top_p", 1)
    story.slide("top_k", 9)  # all
    story.slide("temperature", 1)
    before = logits.softmax(-1).topk(10)
    assert [abs(bar[1] - p) < 1e-4 and abs(bar[2] - p) < 1e-4 for bar, p in zip(story.bars(), before.values)]
    story.slide("temperature", 0.5)
    want = (logits / 0.5).softmax(-1)[before.indices]
    assert all(abs(bar[2] - p) < 1e-4 for bar, p in zip(story.bars(), want))
    story.slide("top_k", 2)  # 3 tokens
    assert [bar[3] for bar in story.bars()] == [False] * 3 + [True] * 7
    assert abs(sum(bar[2] for bar in story.bars()) - 1) < 1e-4
    story.slide("temperature", 0)
    assert [bar[2] for bar in story.bars()] == [1] + [0] * 9
    began = story.ids()
    story.click(".bar:nth-child(2)")
    assert story.ids() == [*began, int(before.indices[1])]


def test_a_bar_of_a_selected_token_takes_its_place_and_the_text_goes_on(story):
    for _ in range(4):
        story.click("#step")
    before = story.ids()
    i = len(before) - 3
    story.do(f"chips[{i}].node.click()")
    story.settle()
    assert "instead of the selected token" in story.text("#next_help")
    bars = story.do("return Array.from(document.querySelectorAll('.bar'), (bar) => Number(bar.dataset.id))")
    assert story.do("return document.querySelector('.bar.chosen').dataset.id") == str(before[i])
    other = next(id for id in bars if id != before[i])
    story.find(f'.bar[data-id="{other}"]').click()
    story.wait(f"state.ids.length > {i + 3} || has_ended()")
    story.find("#play").click()
    story.settle()
    assert story.ids()[: i + 1] == [*before[:i], other]


def test_the_heads_and_layers_show_what_is_in_the_model(story, model):
    story.click("#tab_look")
    ids = story.ids()
    seen = []
    for layer, head in ((0, 0), (1, 2)):
        story.find("#layer").send_keys(str(layer + 1))
        story.find("#head").send_keys(str(head + 1))
        story.settle()
        assert story.text("#look_from").startswith(f"Layer {layer + 1}, head {head + 1} looks from")
        seen.append([heat**2 for heat in story.heats()])
        question = f"return call('ask', 'story', 'attention', {len(ids) - 1}, {layer}, {head})"
        want = story.do(question)["weights"]
        weights = want if isinstance(want, list) else [want[str(i)] for i in range(len(ids))]
        assert max(abs(a - b) for a, b in zip(seen[-1], weights)) < 1e-3
    assert seen[0] != seen[1] and all(abs(sum(row) - 1) < 1e-2 for row in seen)
    story.do("""chips[5].node.dispatchEvent(
        new PointerEvent("pointerover", {bubbles: true, pointerType: "mouse"}))""")
    story.settle()
    assert story.heats()[6:] == [0] * (len(ids) - 6) and sum(story.heats()[:6]) > 0
    story.click("#find")
    story.wait("document.querySelectorAll('#heads button, #heads p').length")
    story.click("#tab_layers")
    story.do("state.hovered = null; state.selected = null; show()")
    story.settle()
    with torch.inference_mode():
        likeliest = model(torch.tensor([ids]))[0, -1].argmax()
    rows = story.texts("#layers tbody tr")
    assert len(rows) == 1 + model.args.n_layers and rows[0].startswith("embedding")
    name = story.do(f"return token_name({likeliest})")
    assert story.text("#layers tbody tr:last-child td span") == name


@torch.inference_mode()
def test_a_pasted_text_is_measured(story, story_tok, model):
    story.click("#tab_text")
    text = "Lily met a <b>dragon</b>. 龙 The dragon was happy."
    story.find("#text").send_keys(text)
    story.find("#measure").click()
    story.wait("document.querySelectorAll('#places li').length === 5")
    ids = torch.tensor(story_tok.encode(text, bos=True))
    assert len(ids) <= model.args.max_seq_len
    nats = -model(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
    bits = nats.sum() / math.log(2)
    cells = "return Array.from(document.querySelectorAll('#sums div'), (div) => div.innerText.split('\\n'))"
    shown = {name: float(value) for name, value in story.do(cells)}
    assert shown.pop("loss, nats per token") == pytest.approx(float(nats.mean()), abs=1e-3)
    assert shown.pop("bits per byte") == pytest.approx(float(bits) / len(text.encode()), abs=1e-3)
    assert shown == {"tokens": len(ids) - 1, "bytes": len(text.encode())}
    first = story.text("#places li:first-child")
    assert first.startswith(f"{float(nats.max()) / math.log(2):.1f} bits, rank ")
    assert story.do("return document.querySelectorAll('#text_chips b').length") == 0
    assert "龙" in story.text("#text_chips") and "<b>" in story.text("#text_chips")
    story.do("document.getElementById('text').value = 'The dragon was happy. '.repeat(400)")
    story.find("#measure").click()
    story.wait("document.getElementById('progress').textContent.startsWith('The first 2,048 tokens')")


def test_both_languages_all_widths_and_no_motion_where_none_is_wanted(story):
    story.click("#language")
    assert story.do("return document.documentElement.lang") == "zh"
    assert story.text("h1") == "看模型怎么想" and story.text("#play") == "开始写"
    for language in ("zh", "en"):
        for width in (390, 1280):
            story.resize(width)
            for tab in ("next", "look", "layers", "text"):
                story.click(f"#tab_{tab}")
                needed = story.do("return document.documentElement.scrollWidth")
                assert needed <= width, (language, width, tab)
        story.click("#language")
    assert story.do("return document.documentElement.lang") == "zh"
    story.resize(390, prefers_reduced_motion="reduce")
    story.click("#tab_next")
    assert story.do("return getComputedStyle(document.querySelector('.bar i')).transitionDuration") == "0s"


def test_the_tabs_are_tabs_and_every_field_has_a_name(story):
    story.find("#tab_next").send_keys("\ue014\ue014")
    story.settle()
    assert story.do("return [document.activeElement.id, state.tab]") == ["tab_layers", "layers"]
    nameless = story.do("""return Array.from(document.querySelectorAll("input, select, textarea, button"))
        .filter((node) => !(node.labels?.length || node.textContent.trim() || node.ariaLabel))
        .map((node) => node.id)""")
    assert nameless == []


def test_without_a_worker_the_page_runs_the_model_itself(browser, story_page):
    browser.resize(1280)
    browser.open(story_page, before="delete window.Worker")
    assert browser.do("return typeof Worker") == "undefined"
    began = browser.ids()
    browser.click("#step")
    alone = browser.ids()
    browser.open(story_page)
    browser.click("#step")
    assert browser.ids() == alone and len(alone) == len(began) + 1
    assert browser.log() == []


def test_a_chat_answers_and_shows_its_template_on_request(browser, tok, tmp_path):
    checkpoint = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=tok.n_words, max_seq_len=128)
    browser.resize(1280)
    browser.open(write_page(tmp_path / "chat.html", checkpoint))
    assert browser.ids() == [] and not browser.find("#play").is_enabled()
    browser.do("document.getElementById('speed').value = '0'")
    browser.type("#prompt", "你好，世界。<s>")
    assert browser.text("#play") == "Send"
    browser.find("#play").click()
    browser.wait("!state.playing && state.ids.length > 0 && has_ended()")
    browser.settle()
    asked = tok.encode_chat([system(), user("你好，世界。<s>")], add_generation_prompt=True)[0]
    assert browser.ids()[: len(asked)] == asked
    answer = browser.ids()[len(asked) :]
    assert answer and (answer[-1] == tok.eos_id or len(browser.ids()) == 128)
    assert browser.texts(".turn .who") == ["System", "You", "The model"]
    hidden = "return chips.filter(({ node }) => !node.checkVisibility()).length"
    assert browser.do(hidden) > 0 and "im_start" not in browser.text("#chips")
    browser.click("#special")
    assert browser.do(hidden) == 0 and browser.text("#chips").count("<|im_start|>") == 3
    browser.type("#prompt", "再见")
    browser.find("#play").click()
    browser.wait("!state.playing && has_ended()")
    assert browser.do("return state.messages.at(-1)") == {"role": "user", "content": "再见"}
    assert browser.log() == []


def test_the_policy_stops_what_a_story_must_not_do(browser, story_page):
    browser.open(story_page)
    blocked = browser.driver.execute_async_script("""
        const done = arguments[arguments.length - 1];
        const blocked = [];
        addEventListener("securitypolicyviolation", (event) => {
          blocked.push(event.effectiveDirective);
          if (blocked.length === 3) done(blocked.sort());
        });
        fetch("https://example.invalid/").catch(() => {});
        const image = new Image();
        image.src = "https://example.invalid/x.png";
        const script = document.createElement("script");
        script.textContent = "document.title = 'changed'";
        document.body.append(script);
    """)
    assert blocked == ["connect-src", "img-src", "script-src-elem"]
    assert browser.driver.title == "See it think"
    browser.log()  # chromium tells what it has blocked
