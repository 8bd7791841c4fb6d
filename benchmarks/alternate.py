"""Two versions of the code against each other: CPU time of their training steps, in turn.

    python benchmarks/alternate.py OLD NEW --shape=small --loss=flow_matching --rounds=12

OLD and NEW are checkouts with an installed .venv. Each compiles its step in a process of its own,
which then takes short turns with the other: other work on the machine meets both alike. On one core
(--cores=1) what counts is the CPU time of a process whose products run in one thread; a wall clock
would measure the other work, too. On several (--cores=0,1) it is the wall clock. Options that start
with --model. change the config of NEW only, with --both. of both. The result is JSON: milliseconds
per step of OLD and NEW (medians and least), the median and the quartiles of the ratios of
neighbouring turns, and the temporary memory of both programs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPES = {  # vocabulary, length, batch, changes of the model
    "small": (1000, 64, 64, dict(width=128, depth=4, heads=4)),
    "quickstart": (1024, 64, 32, dict(width=128, depth=4, heads=4)),
    "bench_cpu": (30522, 128, 32, dict(width=256, depth=6, heads=4)),
}


def child(shape: str, loss: str, steps: int, cores: str, changes: dict) -> None:
    """Says "ready" and the bytes of its program; for every line read runs and says the seconds."""
    clock = time.perf_counter if "," in cores else time.process_time
    from flm_jax import config as config_lib
    from flm_jax.configs import common
    from flm_jax.lab.benchmark.asked import Asked
    from flm_jax.lab.benchmark.measure import prepare

    vocab, length, batch, model = SHAPES[shape]
    tree = common.get_config("distill" if loss == "psd" else "pretrain")
    tree.data.update(name="lm1b", length=length)
    tree.tokenizer.name = "bert-base-uncased"
    tree.model.update(cond_dim=128, dropout=0.0, **model)
    for name, value in changes.items():
        old = tree.model[name]
        tree.model[name] = value if isinstance(old, str) else type(old)(json.loads(value))
    tree.train.batch_size = batch
    config = config_lib.resolve(tree.to_dict() | {"teacher": "random" if loss == "psd" else ""})
    plan = Asked(vocab=vocab, loss=loss).plan(config, "train", "projected")
    prepared = prepare(plan)
    prepared.run()
    memory = prepared.compiled.memory_analysis()
    print("ready", memory.temp_size_in_bytes if memory else 0, flush=True)
    for _ in sys.stdin:
        start = clock()
        for _ in range(steps):
            prepared.run()
        print((clock() - start) / steps, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkouts", nargs="*")
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--loss", default="flow_matching")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--cores", default="1")
    parser.add_argument("--child", action="store_true")
    options, rest = parser.parse_known_args()
    pairs = [word.removeprefix("--").split("=", 1) for word in rest]
    own = {key.removeprefix("model."): value for key, value in pairs if key.startswith("model.")}
    both = {key.removeprefix("both."): value for key, value in pairs if key.startswith("both.")}
    if options.child:
        return child(options.shape, options.loss, options.steps, options.cores, own)
    flags = "" if "," in options.cores else "--xla_cpu_multi_thread_eigen=false "
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags + os.environ.get("XLA_FLAGS", ""),
    }
    runs = []
    for checkout in options.checkouts:
        changes = both | (own if checkout == options.checkouts[-1] else {})
        words = [f"--model.{key}={value}" for key, value in changes.items()]
        asked = [f"--shape={options.shape}", f"--loss={options.loss}", f"--steps={options.steps}"]
        asked.append(f"--cores={options.cores}")
        command = ["taskset", "-c", options.cores, f"{checkout}/.venv/bin/python", __file__]
        pipe = subprocess.PIPE
        runs.append(
            subprocess.Popen(
                [*command, "--child", *asked, *words],
                stdin=pipe, stdout=pipe, text=True, env=environment, cwd=checkout,
            )
        )  # fmt: skip
    memory = [int(run.stdout.readline().split()[1]) for run in runs]
    seconds = [[] for _ in runs]
    for _ in range(options.rounds):
        for run, found in zip(runs, seconds, strict=True):
            run.stdin.write("go\n")
            run.stdin.flush()
            found.append(float(run.stdout.readline()))
    for run in runs:
        run.stdin.close()
        run.wait()
    ratios = [old / new for old, new in zip(seconds[0], seconds[-1], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    found = {
        "shape": options.shape,
        "loss": options.loss,
        "new": own,
        "both": both,
        "cores": options.cores,
        "ms": [round(1e3 * statistics.median(found), 1) for found in seconds],
        "least_ms": [round(1e3 * min(found), 1) for found in seconds],
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "temporary_MiB": [round(n / 2**20, 1) for n in memory],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
