"""From PTX text to threads that run it: parser, number formats, translation, scheduling."""
