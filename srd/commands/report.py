"""Runs side by side, finished or not: `srd report runs/demo`.

Each folder is a run's, or holds runs. Runs that differ only in their seed become one row: mean,
standard deviation, 95 % interval. Writes report.md, report.png and report.html, a page that needs
nothing beside it: curves, accuracy of each class, what is taken for what, student and teacher.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from srd.cli import Parser, parse_strictly
from srd.errors import UserError
from srd.installed import need_extra
from srd.printable import printable_lines


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd report", description=__doc__, allow_abbrev=False)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="of a run, or with runs in it")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="for report.*; else the folder given, of several this one",
    )
    return parser


def run(arguments: Sequence[str]) -> None:
    """Show runs side by side as a table, a picture and a page.

    Raises:
        UserError: no evaluated run there, a damaged one, or no matplotlib.
        RunFailed: the report cannot be written.
    """
    flags = parse_strictly(make_parser(), arguments)
    folders = [Path(folder).expanduser() for folder in flags.folders]
    need_extra("report", "matplotlib", what="pictures of runs")
    alone = folders[0] if len(folders) == 1 else Path()
    output = Path(flags.output).expanduser() if flags.output else alone
    if os.path.isfile(output):
        raise UserError(f"--output {output} is a file: name a folder for report.md and the others")
    report(folders, output)


def report(folders: Sequence[Path], output: Path) -> None:
    """Write the report of the runs in `folders` into `output`, and print its table."""
    # torch takes seconds to import: mistakes in the command are told before
    from srd.files.checkpoint import write_text, write_whole
    from srd.report.groups import fold
    from srd.report.page import make_page
    from srd.report.panels import as_png
    from srd.report.runs import find_runs
    from srd.report.table import markdown

    groups = fold(find_runs(folders))
    text = markdown(groups)
    title = f"Runs in {', '.join(str(folder) for folder in folders[:3])}"
    picture = as_png(groups)
    page = make_page(groups, title if len(folders) <= 3 else f"{title}, ...")
    write_text(output / "report.md", text + "\n")
    write_whole(output / "report.png", lambda file: file.write(picture))
    write_text(output / "report.html", page)
    print(printable_lines(f"\n{text}\n\npage: {output / 'report.html'}, picture: report.png"))
