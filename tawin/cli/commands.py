"""The commands of the console script `tawin`, one module each.

A command's module has `add_command(commands)`, which adds its name and its options to the parser. They hold `act`, the
function that runs it, in `options.act`. ValueErrors and OSErrors of that are messages to the user. `train` has so many
options that tyro parses them, and ends in ways of its own: `cli` calls its `run`.
"""

from . import evaluate, export, prepare, recommend, report, train

COMMANDS = (prepare, train, evaluate, recommend, export, report)
"""Modules with the `add_command` of one command each, as `tawin --help` lists them."""
