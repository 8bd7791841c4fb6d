"""python -m flm_jax.main: the same as `flm train`."""

import sys

from flm_jax import cli

if __name__ == "__main__":
    cli.main(["train", *sys.argv[1:]])
