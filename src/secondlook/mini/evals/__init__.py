"""Benchmarks of the miniature's world, whose truth a program reads from the pictures."""
