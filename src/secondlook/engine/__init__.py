"""Drawing and writing, many sequences at once: ``engine`` (submit, step, run) over ``scheduler``
(who enters, who is resumed) and ``running_batch`` (prefill, sample, forward pass on a static
key-value cache)."""
