"""Files that people bring, read as episodes: one file a format, behind `read_raw`."""
