"""Tools of the repository: what looks at the code without being part of it. Not in the wheel."""
