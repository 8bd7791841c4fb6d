"""python -m flm_jax COMMAND, the same as flm COMMAND."""

from flm_jax.cli import main

if __name__ == "__main__":
    main()
