"""Settings of the property tests: few examples, always the same ones, no time limit for each."""

import hypothesis

lean = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
# Where an example runs programs of JAX; arrays tell no more when they are made simpler.
leaner = hypothesis.settings(
    lean, max_examples=20, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)
