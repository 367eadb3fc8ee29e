"""`tawin report`: one HTML page and PNGs of several runs, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.page import write_report
from .arguments import Commands


def add_command(commands: Commands) -> None:
    command = commands.add_parser("report", help="one HTML page and PNGs, several runs side by side")
    command.add_argument("run", type=Path, nargs="+")
    command.add_argument("--out", type=Path, help="folder of the report (default: the first run's)")
    command.set_defaults(act=_report)


def _report(options: argparse.Namespace) -> None:
    print(write_report(options.run, options.out or options.run[0]))
