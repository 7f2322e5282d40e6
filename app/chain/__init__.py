"""Blocks over the journal: hashes, Merkle logs, state trees, headers, signatures (chain page).

Everything here is pure but the store: bytes in, values out. Preparing a block never changes what
it is prepared from, so a block whose record could not be written leaves no trace.
"""
