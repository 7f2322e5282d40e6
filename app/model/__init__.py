"""What an entry is: pure types, codecs and rules. Nothing here does I/O."""
