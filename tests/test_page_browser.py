"""
extras/page/ in a real browser: each thing on the page does what it says; so do the two pages in docs/. Needs
chromium and its driver (Debian: chromium, chromium-driver) and the package selenium.
"""

import shutil
import time
from pathlib import Path

import pytest
import torch

from tests.fixtures import HERE, random_checkpoint, system, user
from tests.test_page import float16_model, write_page
from tokenizer import Tokenizer

webdriver = pytest.importorskip("selenium.webdriver", reason="there is no selenium")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium or no chromedriver")
pytest_plugins = ["tests.fixtures"]
DOCS = Path(HERE) / "docs"


class Browser:
    """A page in chromium. `do` runs JavaScript; `click` and `type` work as a reader does."""

    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--lang=en-US", "--window-size=1280,900"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.do = self.driver.execute_script

    def open(self, url):
        self.driver.get(url)
        self.wait("document.documentElement.dataset.ready")

    def wait(self, condition):
        WebDriverWait(self.driver, 60, 0.02).until(lambda _: self.do(f"return ({condition})"), condition)

    def settle(self):
        """Wait until what was asked is done and drawn."""
        frames = "then(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))"
        self.do(f"return queue.{frames}.then(() => call('ask', 'story', 'lens', 0, 1)).{frames}")

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.find(selector).text

    def type(self, selector, text):
        self.find(selector).clear()
        self.find(selector).send_keys(text)
        time.sleep(0.3)  # the page waits until a reader stops typing
        self.settle()

    def click(self, *selectors):
        for selector in selectors:
            self.find(selector).click()
            self.settle()

    def set(self, **fields):
        for name, value in fields.items():
            self.do(f"$('{name}').value = {value}; $('{name}').dispatchEvent(new Event('input'))")
        self.settle()

    def ids(self):
        return self.do("return state.ids")

    def all(self, selector, value="textContent"):
        """A property of each of these elements."""
        return self.do(f"return Array.from(document.querySelectorAll('{selector}'), (node) => node.{value})")

    def numbers(self, selector, name):
        """A number that the style of each of these elements holds."""
        return torch.tensor([float(p) for p in self.all(selector, f"style.getPropertyValue('{name}')")])


@pytest.fixture(scope="module")
def browser(trained, data, tmp_path_factory):
    found = Browser()
    found.page = "file://" + write_page(tmp_path_factory.mktemp("page") / "story.html", f"{trained}/ckpt.pt")
    found.model = float16_model(f"{trained}/ckpt.pt")
    found.tok = Tokenizer(f"{data}/tok512.model")
    yield found
    messages = found.driver.get_log("browser")
    found.driver.quit()
    assert messages == []  # a request, which the page's policy blocks, leaves one, too


@pytest.fixture
def story(browser):
    browser.open(browser.page)
    return browser


def test_a_typed_beginning_is_written_on_paused_stepped_and_repeated(story):
    text = "Tom saw <img src=x> & ran"
    story.type("#prompt", text)
    begun = story.tok.encode(text, bos=True)
    assert story.ids() == begun and story.all("#chips") == [f"<s> {text}"]
    story.find("#play").click()
    story.wait(f"state.ids.length > {len(begun) + 3}")
    story.click("#play")
    written = story.ids()
    time.sleep(0.4)
    assert story.ids() == written and len(story.all("#chips .chip")) == len(written)
    story.click("#back")
    assert story.ids() == written[:-1]
    for seed in ("1337", "7"):  # the same seed, the same tokens
        story.type("#seed", seed)
        story.click("#restart", "#step", "#step", "#step")
        assert story.ids()[:-3] == begun
        assert (story.ids() == written[: len(begun) + 3]) == (seed == "1337")


def test_both_languages_fit_a_telephone_and_a_screen(story):
    story.click("#language")
    assert story.text("h1") == "看模型怎么想" and story.text("#play") == "开始写"
    for _ in ("zh", "en"):
        for width in (390, 1280):
            screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            story.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            for tab in ("next", "look", "layers", "text"):
                story.click(f"#tab_{tab}")
                assert story.do("return document.documentElement.scrollWidth") <= width, (width, tab)
                assert story.all("[role=tabpanel]:not([hidden])", "id") == [f"panel_{tab}"]
        story.click("#language")


def test_a_chat_answers_and_shows_its_template_on_request(story, tok, tmp_path):
    checkpoint = random_checkpoint(tmp_path / "c.pt", tok.state(), vocab_size=tok.n_words, max_seq_len=128)
    story.open("file://" + write_page(tmp_path / "chat.html", checkpoint))
    story.set(speed=0)
    story.type("#prompt", "你好，世界。<s>")
    story.find("#play").click()
    story.wait("!state.playing && state.ids.length > 0 && has_ended()")
    story.settle()
    asked = tok.encode_chat([system(), user("你好，世界。<s>")], add_generation_prompt=True)[0]
    assert story.ids()[: len(asked)] == asked and len(story.ids()) > len(asked)
    assert story.all(".turn .who") == ["System", "You", "The model"]
    assert "im_start" not in story.text("#chips")
    story.click("#special")
    assert story.text("#chips").count("<|im_start|>") == 3


@pytest.mark.parametrize("page, name", [("demo.html", "Shoggoth"), ("demo.zh.html", "修格斯")])
def test_the_model_tells_of_a_name_that_it_has_never_seen(browser, page, name):
    browser.open((DOCS / page).as_uri())
    assert browser.do("return $('prompt').value").count(name) == 1
    lang, cut = browser.do("return [document.documentElement.lang, settings().without.length]")
    assert (lang, cut > 99) == (("zh", False) if ".zh." in page else ("en", True))  # the name stays whole
    browser.set(speed=0)
    browser.find("#play").click()
    browser.wait("!state.playing && state.ids.length > 50 && has_ended()")
    assert browser.do("return tok.decode(state.ids)").count(name) >= 3
    browser.click("#tab_look", "#find")
    browser.wait("document.querySelectorAll('#heads button').length === 3")
    score = browser.do("return call('ask', 'story', 'copy_heads').then(([best]) => best.score)")
    assert score > 0.2
