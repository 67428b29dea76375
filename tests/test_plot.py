"""extras/plot.py: the picture of a run, whose errors never end the run."""

import os
import subprocess
import sys

import pytest

from extras import plot
from tests.fixtures import HERE, write_rows


def test_the_picture_of_a_log_or_one_printed_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    bad = {"step": 1, "train_loss": None, "val_loss": 6.0, "val_bpb": 2.0, "limit_bpb": 1.0}
    log = str(write_rows(tmp_path / "log.jsonl", [{"step": 0, "loss": 7.0}, bad]))
    for _ in range(2):  # an older picture is replaced
        plot.try_draw(log, f"{tmp_path}/loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    plot.draw([log, log], f"{tmp_path}/compare.svg")
    assert "limit, 3.00" in (tmp_path / "compare.svg").read_text()
    assert capsys.readouterr().out == ""
    (tmp_path / "folder.png").mkdir()
    for source, picture in ((log, "folder.png"), (f"{tmp_path}/none.jsonl", "new.png")):
        plot.try_draw(source, f"{tmp_path}/{picture}")
        printed = capsys.readouterr().out
        assert printed.startswith(f"{tmp_path}/{picture} is not drawn: ") and printed.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["compare.svg", "folder.png", "log.jsonl", "loss.png"]


@pytest.mark.parametrize("source, printed", [
    ("raise ImportError('numpy is too old\\nsecond line')", "numpy is too old\n"),
    ("raise RuntimeError", "RuntimeError\n"),
    (None, ""),  # it is not installed
])  # fmt: skip
def test_a_matplotlib_that_is_missing_or_broken(source, printed, tmp_path):
    """In a process of its own, which has not imported matplotlib yet."""
    if source:
        (tmp_path / "stub").mkdir()
        (tmp_path / "stub" / "matplotlib.py").write_text(source)
    hide = "" if source else "sys.modules['matplotlib'] = None; "
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'stub')!r}); {hide}"
    code += "from extras.plot import try_draw; try_draw('log.jsonl', 'loss.png')"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (printed and f"loss.png is not drawn: {printed}")
