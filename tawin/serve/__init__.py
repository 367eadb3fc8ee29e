"""A trained run in use: loaded, exported, asked for recommendations."""
