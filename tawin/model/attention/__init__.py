"""Which attention a forward runs, and who sees whom."""
