"""The write-ahead log.

Its format, its files, writing, reading and recovering it (protocol, section 5).
"""
