"""Benchmarks: one module a subject, each a generator `measure()` of `figures.Figure`."""
