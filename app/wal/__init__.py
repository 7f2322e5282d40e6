"""The write-ahead log: its format, its files, writing, reading and recovering it (protocol, section 5)."""
