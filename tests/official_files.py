"""Official checkpoint files with random weights, and a tokenizer for them."""

import torch_files as tf
from states import HEADS, random_state

from flm_jax.interop import hub_layout, layout
from flm_jax.tokenizers.characters import Characters

V, L = 11, 6
TWO_TIMES = layout.Sizes(V, 8, 6, 2, 4, True, True)
ONE_TIME = layout.Sizes(V, 8, 6, 2, 4, False, False)


def saved_letters(folder, size=V) -> str:
    """The folder of a saved tokenizer of `size` tokens."""
    Characters("".join(chr(ord("a") + i) for i in range(size - 4))).save(folder)
    return str(folder)


def lightning(path, sizes=TWO_TIMES, averaged=True, config=None):
    """A .ckpt with raw weights and an EMA; returns (path, raw state, averaged state)."""
    state, average = random_state(sizes, 0), random_state(sizes, 1, buffer=False)
    arrays = [*state.values(), *average.values()]
    pieces = [tf.tensor(str(i), array) for i, array in enumerate(arrays)]
    names = [f"backbone.{name}" for name in state]
    tree = {"state_dict": dict(zip(names, pieces, strict=False))}
    if config is not None:
        tree["hyper_parameters"] = {"config": config}
    if averaged:
        tree["ema"] = {"decay": 0.9999, "num_updates": 4, "shadow_params": pieces[len(state) :]}
    tf.save(path, tree, {str(i): array for i, array in enumerate(arrays)})
    return path, state, average


def hub(folder, sizes=TWO_TIMES, seed=0, **options):
    """An official folder; returns (folder, our parameters)."""
    params = hub_layout.to_params(random_state(sizes, seed))
    return hub_layout.write(folder, params, heads=HEADS, length=L, **options), params
