"""Random official state dicts for the tests."""

import numpy as np

from flm_jax.interop import layout

SIZES = layout.Sizes(
    vocab_size=11,
    hidden_size=8,
    cond_dim=6,
    depth=2,
    mlp_ratio=4,
    two_times=True,
    loss_weighting=True,
    loss_hidden=10,
)
ONE_TIME = layout.Sizes(11, 8, 6, 2, 4, False, False)
HEADS = 2


def random_state(sizes=SIZES, seed=0, buffer=True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    state = {e.name: rng.normal(size=e.shape).astype(np.float32) for e in layout.entries(sizes)}
    if buffer:
        state[layout.INV_FREQ] = layout.inv_freq(sizes.hidden_size, HEADS)
    return state


def assert_same(state, expected):
    expected = {name: array for name, array in expected.items() if name != layout.INV_FREQ}
    assert list(state) == [name for name in expected]
    for name in expected:
        np.testing.assert_array_equal(state[name], expected[name], err_msg=name)
