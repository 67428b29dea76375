"""
What figures.py draws with: colours for light and for dark pages, two sizes of text, a sheet of pixels with
boxes and arrows on it, charts, and SVG whose text stays text. Nothing here knows what a model is.

Reads  nothing
Writes what save() is told to
"""

import io
import math
import warnings

from configurator import atomic_write
from extras import import_optional

import_optional("matplotlib", "a picture")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib import colors  # noqa: E402
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle  # noqa: E402

WIDTH, PX = 830, 1 / 96  # what GitHub gives a README; a browser's pixel in inches
BIG, SMALL = 13 * 0.75, 11 * 0.75  # sizes of text: pixels in points
# Laid out by DejaVu, which comes with matplotlib and is wider than what a reader's machine will take.
FONTS = {
    "'DejaVu Sans Mono'": "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono'",
    "'DejaVu Sans'": "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, 'DejaVu Sans'",
}
# GitHub's backgrounds and greys, and a blue and an orange near those of Okabe & Ito, which colour-blind
# readers tell apart. Not transparent: where a page's theme is not the system's, dark would stand on dark.
LIGHT = {"back": "#ffffff", "ink": "#1f2328", "soft": "#59636e", "line": "#c5ced7", "fill": "#f3f5f8",
         "blue": "#0072b2", "orange": "#c65102"}  # fmt: skip
DARK = {"back": "#0d1117", "ink": "#e6edf3", "soft": "#9aa4af", "line": "#3d444d", "fill": "#161d26",
        "blue": "#56b4e9", "orange": "#e69f00"}  # fmt: skip
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "the same ids in every run", "font.size": SMALL,
    "font.sans-serif": ["DejaVu Sans"], "font.monospace": ["DejaVu Sans Mono"], "text.color": "ink",
    "axes.labelcolor": "ink", "xtick.color": "soft", "ytick.color": "soft", "axes.edgecolor": "soft",
    "axes.facecolor": "back", "figure.facecolor": "back", "grid.color": "line", "grid.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": BIG, "axes.titlelocation": "left", "axes.titlepad": 12, "lines.linewidth": 1.5,
    "patch.linewidth": 1.2, "legend.frameon": False,
}  # fmt: skip


def add_dark_colors(svg):
    """The SVG with a rule for dark pages. It has to beat matplotlib's style attributes: !important."""
    rules = [
        f'[style*="{key}: {LIGHT[name]}"] {{{key}: {DARK[name]} !important}}'
        for name in LIGHT
        for key in ("fill", "stroke")
    ]
    rule = "\n".join(("", "@media (prefers-color-scheme: dark) {", *rules, "}", "</style>"))
    return svg.replace("</style>", rule, 1)


def axes(height, place, **more):
    """Axes at place (x, y, width, height; in parts of the whole) of the figure at hand, or of a new one."""
    fig = plt.gcf() if plt.get_fignums() else plt.figure(figsize=(WIDTH * PX, height * PX))
    return fig.add_axes(place, **more)


def sheet(height):
    """Axes that fill a new figure; their unit is the pixel, y downwards."""
    ax = axes(height, (0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis("off")
    return ax


def chart(title, xlabel, ylabel, height=340):
    ax = plt.figure(figsize=(WIDTH * PX, height * PX), layout="constrained").add_subplot()
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return ax


def say(ax, x, y, text, color="ink", size=SMALL, ha="center", **more):
    ax.text(x, y, text, color=color, size=size, ha=ha, va="center", **more)


def note(ax, x, y, text, **more):
    """A small grey text that begins at (x, y)."""
    say(ax, x, y, text, "soft", ha="left", **more)


def beside(ax, x, y, text, color, dx=0, dy=0, ha="center"):
    """A text beside a point of a chart, by dx and dy pixels."""
    offset = {"xytext": (dx * 0.75, dy * 0.75), "textcoords": "offset points"}
    ax.annotate(text, (x, y), color=color, ha=ha, va="center", **offset)


def cell(ax, x, y, w, h, **more):
    """A rectangle with its upper left corner at (x, y)."""
    ax.add_patch(Rectangle((x, y), w, h, **more))


def box(ax, x, y, w, h, text="", edge="line", size=BIG, **more):
    """A rounded box with its upper left corner at (x, y), and a text in its middle."""
    ax.add_patch(FancyBboxPatch((x + 4, y + 4), w - 8, h - 8, "round,pad=4", fc="fill", ec=edge))
    say(ax, x + w / 2, y + h / 2, text, size=size, **more)


def named_box(ax, x, y, w, name, content):
    """A file: its name, and what is in it."""
    box(ax, x, y, w, 56)
    say(ax, x + 14, y + 19, name, "blue", BIG, "left", family="monospace")
    say(ax, x + 14, y + 39, content.replace("  ", "\u00a0\u00a0"), ha="left", family="monospace")


def arrow(ax, *points, color="soft"):
    """A line through the points (x, y), with a head at its end."""
    ax.plot(*zip(*points), color=color, linewidth=1.2, solid_joinstyle="miter")
    (x0, y0), (x1, y1) = points[-2:]
    dx, dy = ((b - a) / math.dist(*points[-2:]) for a, b in ((x0, x1), (y0, y1)))
    x, y = x1 - 7 * dx, y1 - 7 * dy
    ax.add_patch(Polygon(((x1, y1), (x - 4 * dy, y + 4 * dx), (x + 4 * dy, y - 4 * dx)), fc=color, ec="none"))


def drop(ax, x, y, length, text):
    """An arrow downwards, with a text at its side."""
    arrow(ax, (x, y + 2), (x, y + length - 2))
    note(ax, x + 12, y + length / 2, text)


def junction(ax, x, y, text):
    """A small circle where two paths meet."""
    say(ax, x, y, text, size=BIG, bbox={"boxstyle": "circle,pad=0.25", "fc": "back", "ec": "ink"})


def save(path):
    """Write the figure at hand as an SVG that is the same in every run, and close it."""
    f = io.StringIO()
    plt.savefig(f, format="svg", metadata={"Date": None, "Creator": None})
    plt.close()
    text = f.getvalue()
    for ours, theirs in FONTS.items():
        text = text.replace(f"font-family: {ours}", f"font-family: {theirs}")
    with atomic_write(path) as f:
        f.write(add_dark_colors(text))


for name, color in LIGHT.items():  # not update(): it would leave the mapping's cache as it is
    colors.get_named_colors_mapping()[name] = color
plt.rcParams.update(STYLE)
plt.switch_backend("agg")  # no window
warnings.filterwarnings("ignore", "Glyph")  # DejaVu has no Chinese: the reader's machine has
