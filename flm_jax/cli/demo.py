"""Watch models write in the browser, side by side, from noise to text.

    flm demo --checkpoint=runs/q --checkpoint=runs/q_fmlm --checkpoint=runs/q_ar
    flm demo --checkpoint=runs/q_fmlm --output=page --noserve

A page with the models in it is written into a folder and served on this machine until Ctrl-C; the
models run in the browser. --output keeps the folder, which any static host can serve, as
python -m http.server --directory page does (a browser reads no models from file://). Denoisers,
flow maps and autoregressive models, at most three; by default stories, which comes with flm_jax.
"""

import contextlib
import dataclasses
import pathlib
import tempfile

from flm_jax.cli.command import Command
from flm_jax.errors import UserError
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: tuple[str, ...] = knob(
        ("stories",),
        "a workdir, a model of the package, hf://USER/REPO or an official file; up to three, with "
        "commas or one by one",
        nonempty=True,
        repeated=True,
    )
    output: str = knob("", "folder to be made and kept; by default one that goes with the command")
    port: int = knob(0, "port on this machine; 0 = any free one", at_least=0, at_most=65535)
    serve: bool = knob(
        True, "serve the folder until Ctrl-C; --noserve with --output only writes it"
    )
    open: bool = knob(True, "open the page in the browser, where there is a screen")


def run(options: Options) -> None:
    from flm_jax.demo import folder, server
    from flm_jax.host import files

    folder.check_count(options.checkpoint)
    if not (options.serve or options.output):
        raise UserError("--noserve needs --output=FOLDER, or nothing is left of the page")
    with contextlib.ExitStack() as stack:
        if options.output:
            output = pathlib.Path(options.output).expanduser()
            files.check_new(output)
        else:
            output = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "page")
        site = server.Server(output, options.port) if options.serve else None

        from flm_jax import inference

        models = [inference.load(path) for path in options.checkpoint]
        names = [pathlib.PurePath(path).name for path in options.checkpoint]
        folder.write(list(zip(names, models, strict=True)), output)
        if options.output:
            print(f"wrote {output}: {', '.join(map(repr, models))}")
        if site is None:
            print(
                f"to look at it:  python -m http.server --bind {server.HOST} --directory {output}"
            )
            return
        print(f"{site.address}  (Ctrl-C ends it)", flush=True)
        if options.open:
            server.show(site.address)
        site.serve()


COMMAND = Command(__doc__, Options, run)
