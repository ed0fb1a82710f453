"""How it learns. Every job: a config dataclass, a loop that resumes exactly, metrics.jsonl and
TensorBoard."""
