"""Verifying a journal from outside: over HTTP, from a WAL directory, or from a database.

`app.chain.verify` says what is right. Here are the sources that it reads blocks from, one module
each, and the run over one of them.
"""
