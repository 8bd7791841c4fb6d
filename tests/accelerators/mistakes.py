"""`flm` with a mistake in it: python tests/accelerators/mistakes.py MISTAKE WORDS...

Mistakes that a person could make in the code, so that the checks of programs are seen to fail.
"""

import sys

from flm_jax import cli
from flm_jax.host import sharding


def replicated_embedding() -> None:
    """The rule of the embedding table no longer says that fsdp may share it."""
    (pattern, _), *others = sharding.RULES
    assert "embed" in pattern
    sharding.RULES = ((pattern, (None, None)), *others)


MISTAKES = {"replicated_embedding": replicated_embedding}

if __name__ == "__main__":
    MISTAKES[sys.argv[1]]()
    cli.main(sys.argv[2:])
