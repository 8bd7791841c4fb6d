"""What times per token cost: network evaluations with given tokens against those without, in turn.

    taskset -c 1 python benchmarks/given_times.py --shape=stories --rounds=15
    taskset -c 1 python benchmarks/given_times.py --shape=bench_cpu --rounds=7

Given tokens are at time 1, the others at the time of their sequence. Both programs are compiled in
one process and take turns, so that other work on the machine meets both alike; what counts is CPU
time. Measured are the blocks, their gradient, and a whole evaluation as a step of a sampler has it:
blocks, vocabulary head and the mean of the table. The result is JSON: milliseconds of both (least),
the ratio of these, and the median and the quartiles of the ratios of neighbouring turns.
"""

import argparse
import json
import statistics
import time

SHAPES = {"stories": 512, "bench_cpu": 30522}  # config: vocabulary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="stories", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for times in (1, 2):
        for what in ("blocks", "gradient", "whole"):
            found = measured(options.shape, options.rounds, times, what)
            print(json.dumps(found), flush=True)


def measured(shape: str, rounds: int, times: int, what: str) -> dict:
    """A network of one time or two, without given tokens and with 30 % of them."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from flm_jax import config as config_lib
    from flm_jax.experiment import Experiment

    config = config_lib.load(f"configs/{shape}.py", {"model.two_times": times == 2})
    model = Experiment(config, SHAPES[shape]).model
    batch, length, width = config.train.batch_size, config.data.length, config.model.width
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * draw.standard_normal(leaf.shape), leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    state = jnp.asarray(draw.standard_normal((batch, length, width)), jnp.float32)
    tau_B = jnp.asarray(draw.uniform(size=batch), jnp.float32)
    given_BL = jnp.asarray(draw.uniform(size=(batch, length)) < 0.3)

    def evaluation(params, given_BL):
        net, tau_t = model.net(params), tau_B if times == 2 else None
        posterior = net(state, tau_B, tau_t, None, given_BL).posterior
        return jnp.sum(posterior.mean(net.table) if what == "whole" else posterior.features_BLD)

    run = jax.jit(jax.grad(evaluation) if what == "gradient" else evaluation)

    def seconds(given_BL) -> float:
        start = time.process_time()
        jax.block_until_ready(run(params, given_BL))
        return time.process_time() - start

    for given in (None, given_BL):  # compiles
        seconds(given)
    pairs = [(seconds(None), seconds(given_BL)) for _ in range(rounds)]
    ratios = [with_given / plain for plain, with_given in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    plain, with_given = (min(part) for part in zip(*pairs, strict=True))
    return {
        "shape": shape,
        "times": times,
        "what": what,
        "least_ms": [round(1e3 * plain, 1), round(1e3 * with_given, 1)],
        "ratio_of_least": round(with_given / plain, 3),
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


if __name__ == "__main__":
    main()
