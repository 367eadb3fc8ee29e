"""The commands of the console script `tawin`, one a module.

A command's module has `add_command(commands)`, which adds its name and its options to the parser. They hold `act`, the
function that runs it, in `options.act`. ValueErrors and OSErrors of that are messages to the user.
"""
