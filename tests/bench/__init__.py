"""Benchmarks: ``scripts/bench NAME [--runs N] [--quick] [--json FILE]``. They measure and report, they never assert."""
