"""Benchmarks: what specdec gains over transformers, and where its own time goes. See README.md."""
