"""Files of any format, read row by row, with an account of what could not be read."""
