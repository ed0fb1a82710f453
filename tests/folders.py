"""Where tests find what they compare with."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
BENCHMARKS = Path(__file__).parents[2] / "shared" / "benchmarks"
"""Public benchmark files, which are others' to give; tests say so where they are not there."""
