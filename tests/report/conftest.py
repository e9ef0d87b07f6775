from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlsgd.cli.main import main


@pytest.fixture
def make_report(tmp_path: Path) -> Callable[..., Path]:
    """Runs `rlsgd report` and returns the folder that it wrote."""

    def make(*arguments: object) -> Path:
        out = tmp_path / "report"
        assert main(["report", *map(str, arguments), "--out", str(out)]) == 0
        return out

    return make


class Elements(HTMLParser):
    """Every element's name and attributes, and each table row's texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def parsed() -> Callable[[Path], Elements]:
    return lambda out: Elements((out / "report.html").read_text(encoding="utf-8"))
