"""
The two pages in docs/ that show the course's models, as a reader opens them: from a disk, and from a web
server that serves docs/ in a folder. Needs chromium and its driver, and the package selenium.
"""

import functools
import http.server
import threading
from pathlib import Path

import pytest

from tests import test_page_browser
from tests.fixtures import HERE
from tests.test_page_browser import Browser

pytestmark = test_page_browser.pytestmark
DOCS = Path(HERE) / "docs"
NAMES = {"demo.html": "Shoggoth", "demo.zh.html": "修格斯"}


class Server(http.server.ThreadingHTTPServer):
    """Serves docs/ at /a/folder/, and keeps the paths that were asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=DOCS))
        self.paths = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.SimpleHTTPRequestHandler):
    def translate_path(self, path):
        self.server.paths.append(path)
        return super().translate_path(path.removeprefix("/a/folder"))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with Server() as found:
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def browser():
    found = Browser()
    yield found
    assert found.driver.get_log("browser") == []
    found.driver.quit()


def open_page(browser, url):
    browser.driver.get(url)
    browser.wait("document.documentElement.dataset.ready")


@pytest.mark.parametrize("page, name", NAMES.items())
@pytest.mark.parametrize("width, scheme, served", [(1280, "light", False), (390, "dark", True)])
def test_the_model_tells_of_a_name_that_it_has_never_seen(browser, server, page, name, width, scheme, served):
    browser.show_on(width)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.cdp("Emulation.setEmulatedMedia", {"features": features})
    url = f"http://127.0.0.1:{server.server_port}/a/folder/{page}" if served else (DOCS / page).as_uri()
    open_page(browser, url)
    assert browser.do("return $('prompt').value").count(name) == 1
    assert browser.do("return document.documentElement.lang") == ("zh" if ".zh." in page else "en")
    browser.set(speed=0)
    browser.find("#play").click()
    browser.wait("!state.playing && state.ids.length > 50 && has_ended()")
    story = browser.do("return tok.decode(state.ids)")
    assert story.count(name) >= 3, story
    browser.click("#tab_look", "#find")
    browser.wait("document.querySelectorAll('#heads button').length === 3")
    browser.settle()
    score = browser.do("return call('ask', 'story', 'copy_heads').then(([best]) => best.score)")
    assert score > 0.2
    assert browser.do("return document.documentElement.scrollWidth") <= width
    assert browser.driver.get_log("browser") == []
    if served:
        assert {path for path in server.paths if page in path} == {f"/a/folder/{page}"}


def test_the_next_token_is_guessed_before_its_probability_is_shown(browser):
    browser.show_on(1280)
    open_page(browser, (DOCS / "demo.html").as_uri())
    likeliest = browser.all(".bar", "dataset.id")[0]
    browser.click("#guess")
    assert browser.all(".bar .percent") == ["?"] * 10 and browser.numbers(".bar i", "--p").sum() == 0
    names = browser.all(".bar .token")
    assert names == sorted(names)
    began = browser.ids()
    browser.click(f'.bar[data-id="{likeliest}"]')
    assert browser.ids() == began and "in 1 of 1 guesses" in browser.text("#next_help")
    assert browser.all(".bar.chosen", "dataset.id") == [likeliest] == browser.all(".bar", "dataset.id")[:1]
    browser.click("#guess")  # the model goes on by itself, and all is hidden again
    assert len(browser.ids()) == len(began) + 1 and set(browser.all(".bar .percent")) == {"?"}
    browser.click(".bar:nth-child(10)", ".bar:nth-child(2)")  # a guess, and then a choice
    assert len(browser.ids()) == len(began) + 2 and browser.text("#guess") == "Guess it yourself"


def test_the_first_page_leads_to_the_demos_and_the_course(browser, server):
    browser.show_on(390)
    browser.driver.get(f"http://127.0.0.1:{server.server_port}/a/folder/")
    links = browser.all("nav a", "pathname")
    assert links == [f"/a/folder/{name}" for name in (*NAMES, "course.md", "course.zh.md")]
    assert all((DOCS / path.split("/")[-1]).exists() for path in links)
    assert browser.do("return document.images[0].naturalWidth") == 800
    assert browser.do("return document.documentElement.scrollWidth") <= 390
