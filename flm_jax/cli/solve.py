"""Give a model held-out tasks and count the right answers.

    flm solve --checkpoint=runs/sudoku4 --steps=1,4,16
    flm solve --checkpoint=runs/tinygsm --steps=32 --num_samples=1319 --problems=gsm8k/test.jsonl

For models of sudoku, tinygsm, or a synthetic language with a given left side: puzzle, question or
left side are given, the model writes the rest. Programs that it writes are run in processes of
their own, with limits on time and memory; that keeps accidents out, not attackers (docs/tasks.md).
"""

from flm_jax.cli.command import Command
from flm_jax.options import Solving


def run(options: Solving) -> None:
    from flm_jax.host import memory
    from flm_jax.inference import solving

    memory.keep_small()
    solving.solve(options)


COMMAND = Command(__doc__, Solving, run)
