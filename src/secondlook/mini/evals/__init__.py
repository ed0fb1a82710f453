"""Benchmarks of the miniature's world."""
