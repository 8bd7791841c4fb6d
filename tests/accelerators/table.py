"""The programs that `make test-accelerators` compiles, and what is stated of each.

Stated is what the compilers of jax 0.10.2 said on the day of the table, so that what grows by more
than `programs.SLACK` is noticed; a program that has become smaller gets its new numbers here.
"""

from programs import Program, Stated

SPLASH = ("splash_mha_fwd", "splash_mha_dkv", "splash_mha_dq")
PROGRAMS = {
    Program("v5p-128", (64, 1, 1), "owt"): Stated(2.72, 2.18, {"all-reduce": (35, 651.0)}, SPLASH),
    Program("v5p-128", (1, 32, 2), "owt:any_order"): Stated(
        0.08,
        2.89,
        {
            "all-gather": (271, 1760.9),
            "all-reduce": (203, 1589.4),
            "collective-permute": (382, 292.7),
            "all-to-all": (12, 1.9),
        },
        SPLASH,
    ),
    Program("v5e-8", (8, 1, 1), "owt:distill", steps=1): Stated(
        0.53, 0.42, {"all-gather": (1, 0.2)}, ("splash_mha_fwd",)
    ),
    Program(
        "v5p-128", (32, 1, 2), "lm1b:distill", steps=32, overrides=("sampler.batch_size=4096",)
    ): Stated(0.47, 0.65, {"all-reduce": (132, 1562.5), "all-gather": (1, 2.1)}),
    Program("h200x1", (1, 1, 1), "lm1b", overrides=("model.dtype=float32",)): Stated(2.23, 8.62),
    Program("h200x8", (1, 8, 1), "owt"): Stated(
        0.35,
        7.63,
        {"all-gather": (27, 677.7), "reduce-scatter": (12, 184.1), "all-reduce": (32, 312.3)},
    ),
    Program("h200x8", (1, 4, 2), "lm1b:any_order"): Stated(
        0.47,
        2.19,
        {
            "all-gather": (52, 833.2),
            "reduce-scatter": (12, 169.9),
            "collective-permute": (126, 338.9),
            "all-reduce": (112, 274.8),
            "all-to-all": (12, 14.3),
        },
    ),
    Program("h200x1", (1, 1, 1), "owt:distill"): Stated(3.4, 13.1),
    Program("h200x8", (8, 1, 1), "owt:mdlm"): Stated(2.72, 7.97, {"all-reduce": (32, 493.9)}),
    Program("h200x8", (2, 4, 1), "lm1b:distill"): Stated(
        0.71,
        3.08,
        {
            "all-gather": (65, 1296.4),
            "all-reduce": (46, 338.1),
            "reduce-scatter": (12, 184.1),
            "collective-permute": (20, 289.7),
        },
    ),
    Program(
        "h200x1", (1, 1, 1), "lm1b:distill", steps=32, overrides=("sampler.batch_size=128",)
    ): Stated(0.56, 0.71),
    Program("h200x8", (8, 1, 1), "owt:distill", steps=1): Stated(
        0.53, 0.51, {"all-gather": (1, 0.2)}
    ),
}
