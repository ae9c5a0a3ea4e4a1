"""Headless Chromium, for tests marked `browser`: a page's document after a script has looked at it, a picture, a print.

Nothing is fetched: pages are files, and the browser is told to resolve no name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

COMMANDS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND")

# The texts of a chart that touch another one, or leave the chart.
COLLISIONS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const frame = svg.getBoundingClientRect();
  const outside = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1
    || b.bottom > frame.bottom + 1).map(([text]) => [text, 'leaves the chart']);
  const apart = (a, b) => a.right < b.left + 1 || b.right < a.left + 1 || a.bottom < b.top + 2 || b.bottom < a.top + 2;
  const touching = boxes.flatMap(([text, a], i) => boxes.slice(i + 1).filter(([, b]) => !apart(a, b))
    .map(([other]) => [text, other]));
  return [...outside, ...touching];
})
"""


def find() -> str | None:
    """The browser's program, or None."""
    return next((found for command in COMMANDS if (found := shutil.which(command))), None)


def _run(page: Path, profile: Path, *flags: str) -> str:
    program = find()
    assert program is not None
    command = [program, *_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(html: str, script: str, folder: Path, width: int = 1000) -> Any:
    """What the JavaScript expression `script` is worth on a page of `html`, as JSON carries it."""
    page = folder / "asked.html"
    probe = f"<script>document.title = JSON.stringify({script})</script>"
    page.write_text(html.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    document = _run(page, folder / "browser", f"--window-size={width},1000", "--dump-dom")
    title = document.partition("<title>")[2].partition("</title>")[0]
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        title = title.replace(entity, character)
    return json.loads(title)


def picture(page: Path, target: Path, width: int = 1000, height: int = 3000) -> None:
    """A screenshot of the top of a page, as PNG."""
    _run(page, target.parent / "browser", f"--window-size={width},{height}", f"--screenshot={target}")


def print_out(page: Path, target: Path) -> None:
    """The page as PDF."""
    _run(page, target.parent / "browser", "--no-pdf-header-footer", f"--print-to-pdf={target}")
