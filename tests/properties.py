"""Settings of the property tests: few examples, always the same ones, no time limit for each."""

import hypothesis

lean = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
leaner = hypothesis.settings(lean, max_examples=20)  # where an example runs programs of JAX
