"""Scorers of the public benchmarks."""
