"""The commands of the console script `tawin`, one module each.

A command's module has `add_command(commands)`, which adds its name and its options to the parser. They hold `act`, the
function that runs it, in `options.act`. ValueErrors and OSErrors of that are messages to the user. `train` and `extend`
have so many options that tyro parses them, and end in ways of their own: `cli` calls their `run`.
"""

from . import evaluate, export, extend, prepare, recommend, report, score, train, vectors

COMMANDS = (prepare, train, evaluate, recommend, score, vectors, extend, export, report)
"""Modules with the `add_command` of one command each, as `tawin --help` lists them."""
