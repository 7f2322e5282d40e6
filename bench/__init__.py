"""Benchmarks: the journal beside what users would pick instead, and beside the disk's own limit.

`make bench`, `make bench-quick`; docs/benchmarks.md says how it measures and what each row means.
"""
