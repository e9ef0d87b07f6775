"""Write the numbers of docs/findings.md from the studies' results files.

    python tools/findings.py           # rewrites what stands between the page's markers
    python tools/findings.py --check   # exits with 1 if that would change the page

Between `<!-- numbers: NAME -->` and `<!-- end -->` stands what a function of this file's `BLOCKS`
makes of the studies' files; the rest of the page is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that `tools` is found when run as a script

from tools.findings_corrections import corrections, pretraining_notes
from tools.findings_laws import noise_table, rates_table, sparsity_predicted
from tools.findings_tables import TABLES, table_of

PAGE = Path("docs/findings.md")
BLOCKS = {name: (lambda name=name: table_of(name)) for name in TABLES} | {
    "corrections": corrections,
    "pretraining-notes": pretraining_notes,
    "sparsity-predicted": sparsity_predicted,
    "noise-scale": noise_table,
    "rates": rates_table,
}
BLOCK = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def written(page: str) -> str:
    """The page with every block made anew.

    Raises:
        KeyError: a marker names no block.
    """
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]]() + found[3], page)


def main() -> int:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    new = written(page)
    if check:
        print("the page has the numbers of the files" if new == page else "the page is out of date")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
