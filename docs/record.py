"""
Makes the two pages that show the course's models, and the moving pictures of the READMEs, recorded from
these pages in a browser.

Reads  a checkpoint of English and one of Chinese stories: output/ckpt.pt and output_zh/ckpt.pt, of
       quickstart.sh
Writes docs/demo.html, docs/demo.zh.html            the models as pages (extras/page/)
       docs/figures/shoggoth.gif, shoggoth.zh.gif   a story, before and after training, and how it is copied

    python docs/record.py                                          both languages: a minute
    python docs/record.py --english=output/ckpt.pt --chinese=''    one of them

Needs chromium and its driver (Debian: chromium, chromium-driver), and pip install selenium pillow. What is
shown "before training" is the same model with the random weights that a training begins with.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time

import torch
from PIL import Image
from selenium import webdriver

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the course's own files

from configurator import InputError, override
from model import ModelArgs, Transformer, load_checkpoint

english = "output/ckpt.pt"  # a checkpoint that holds its tokenizer; '' makes no English page
chinese = "output_zh/ckpt.pt"  # the same for the Chinese page
seed = 1337  # at least 0, below 4e9: of the page: it decides which story is written

HERE = os.path.dirname(os.path.abspath(__file__))
WIDTH, HEIGHT = 960, 690  # the part of the page that is recorded, in its own pixels
SHOWN = 800  # how wide the picture is: as a README on GitHub
TOP = "scrollTo(0, $('prompt_row').offsetTop - 56); $('chips').scrollTop = 0"
CAPTION = "position:fixed; top:0; left:0; width:100%; padding:9px 20px; font:600 20px/28px var(--sans); "
CAPTION += "background:var(--ink); color:var(--paper); z-index:1"
COLOURS = 160  # of a picture; more make it larger
MOST_BYTES = 1_200_000
LANGUAGES = {
    "en": {
        "page": "demo.html",
        "picture": "shoggoth.gif",
        "prompt": "One day, Lily met a Shoggoth",
        "name": "Shoggoth",
        "before": "Before training: every token is about as likely as any other",
        "after": "After training, on stories in which there is no Shoggoth",
        "copy": "How it copies the name: this attention head looks at what followed last time",
    },
    "zh": {
        "page": "demo.zh.html",
        "picture": "shoggoth.zh.gif",
        "prompt": "有一天，莉莉遇到了一只修格斯",
        "name": "修格斯",
        "before": "训练之前：每个 token 的可能性都差不多",
        "after": "训练之后：它读过的故事里，从来没有修格斯",
        "copy": "它怎样照抄名字：这个注意力头看的是，上一次后面跟着什么",
    },
}


def write_page(checkpoint, path, prompt):
    command = [sys.executable, "-m", "extras.page", f"--checkpoint={os.path.abspath(checkpoint)}"]
    subprocess.run([*command, f"--out={path}", f"--prompt={prompt}"], cwd=os.path.dirname(HERE), check=True)


def untrained(checkpoint, path):
    """The checkpoint of the same model and tokenizer at step 0."""
    saved = load_checkpoint(checkpoint)
    torch.manual_seed(1337)
    model = Transformer(ModelArgs(**saved["model_args"]))
    torch.save({**saved, "model": model.state_dict()}, path)


FOLLOWED = """
    const end = (i) => tok.decode(state.ids.slice(0, i + 1)).length;
    const [text, name] = [tok.decode(state.ids), arguments[0]];
    let at = -1;
    for (let time = 0; time < 3; time++) at = text.indexOf(name, at + 1);
    if (at < 0) return [];
    return Array.from(state.ids.keys()).filter((i) => end(i) > at && end(i) < at + name.length);
"""


class Recorder:
    """A browser without a window, and the pictures taken of it so far."""

    def __init__(self):
        driver = shutil.which("chromedriver")
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if not (browser and driver):
            raise InputError("there is no chromium or no chromedriver: apt install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--lang=en-US"):
            options.add_argument(argument)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        screen = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SHOWN / WIDTH, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = {"prefers-color-scheme": "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.pictures = []  # (PNG, milliseconds)

    def open(self, path, caption):
        self.driver.get(f"file://{path}")
        self.wait("document.documentElement.dataset.ready")
        self.do(f"$('seed').value = {seed}; {TOP}")
        self.do("document.body.append(globalThis.caption = element('div'))")
        self.do(f"caption.style.cssText = '{CAPTION}'")
        self.say(caption)

    def say(self, caption):
        """A line over the page that says what one sees; it is no part of the page."""
        self.do(f"caption.textContent = '{caption}'")

    def do(self, script):
        """Run JavaScript, wait until the page has answered and drawn."""
        self.driver.execute_script(script)
        frames = "then(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))"
        asked = "call('ask', 'story', 'lens', 0, 1)"
        self.driver.execute_script(f"return queue.{frames}.then(() => {asked}).{frames}")

    def wait(self, condition):
        until = time.time() + 60
        while not self.driver.execute_script(f"return {condition}"):
            if time.time() > until:
                raise InputError(f"the page does not come to: {condition}")
            time.sleep(0.02)

    def take(self, milliseconds):
        self.pictures.append((self.driver.get_screenshot_as_png(), milliseconds))

    def write(self, tokens, milliseconds, every=1):
        """Press "Step" until the story has ended, at most `tokens` times."""
        for n in range(tokens):
            if self.driver.execute_script("return has_ended()"):
                break
            self.do("$('step').click()")
            self.do("$('chips').scrollTop = $('chips').scrollHeight")
            if n % every == 0:
                self.take(milliseconds)

    def follow(self, name, milliseconds):
        """Select the tokens of the name where it stands for the third time, but the last: what comes after
        them has to be copied."""
        for i in self.driver.execute_script(FOLLOWED, name):
            self.do(f"chips[{i}].node.click()")
            self.do(TOP)
            self.take(milliseconds)


def record(language, before, after):
    words = LANGUAGES[language]
    recorder = Recorder()
    recorder.open(before, words["before"])
    recorder.take(1000)
    recorder.write(30, 80)
    recorder.take(900)
    recorder.open(after, words["after"])
    recorder.take(1200)
    recorder.write(400, 75, every=2)
    recorder.take(1500)
    recorder.say(words["copy"])
    recorder.do(f"$('tab_look').click(); {TOP}")
    recorder.take(700)
    recorder.do("$('find').click()")
    recorder.wait("document.querySelectorAll('#heads button').length")
    recorder.do(TOP)
    recorder.take(2000)
    recorder.follow(words["name"], 1300)
    recorder.driver.quit()
    return recorder.pictures


def save(pictures, path):
    """The pictures as one that moves. All have the same colours, so that only what changes is stored."""
    frames = [Image.open(io.BytesIO(png)).convert("RGB") for png, _ in pictures]
    some = [frames[0], *frames[30::30], frames[-1]]
    common = Image.new("RGB", (frames[0].width, len(some) * frames[0].height))
    for n, frame in enumerate(some):
        common.paste(frame, (0, n * frame.height))
    palette = common.quantize(COLOURS)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [milliseconds for _, milliseconds in pictures]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    size = os.path.getsize(path)
    print(f"wrote {path} ({size / 1e6:.2f} MB, {len(frames)} pictures, {sum(durations) / 1000:.1f} s)")
    if size > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES / 1e6:.1f} MB: take fewer COLOURS or pictures")


if __name__ == "__main__":
    override(globals())
    for language, checkpoint in (("en", english), ("zh", chinese)):
        if not checkpoint:
            continue
        words = LANGUAGES[language]
        page = os.path.join(HERE, words["page"])
        write_page(checkpoint, page, words["prompt"])
        with tempfile.TemporaryDirectory() as folder:
            untrained(checkpoint, f"{folder}/0.pt")
            write_page(f"{folder}/0.pt", f"{folder}/0.html", words["prompt"])
            pictures = record(language, f"{folder}/0.html", page)
        save(pictures, os.path.join(HERE, "figures", words["picture"]))
