"""Share a model on a hub: upload what `flm export --format=hub` wrote.

    flm push --folder=released --repo=hf://USER/REPO
    flm push --folder=released --repo=hf://USER/REPO@BRANCH --private

First fill in the licence in README.md, the model card. The repository is made unless it is there,
and gets one commit; what it held stays in its history. HF_TOKEN, or hf auth login, says who you
are, and HF_ENDPOINT where another hub is; pip install 'flm_jax[hub]' brings the library. Others
read the model with flm_jax.load("hf://USER/REPO").
"""

import dataclasses

from flm_jax.cli.command import Command
from flm_jax.errors import UserError
from flm_jax.host import folders, hub
from flm_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    folder: str = knob(
        "",
        "that flm export --format=hub made",
        needed="--folder=FOLDER is missing; name one",
    )
    repo: str = knob(
        "", "hf://USER/REPO or hf://USER/REPO@BRANCH", needed="--repo=hf://USER/REPO is missing"
    )
    private: bool = knob(False, "a repository that is made is seen by its owner only")


def run(options: Options) -> None:
    from flm_jax.export.hub import LICENCE
    from flm_jax.interop import release

    folder = folders.expanded(options.folder)
    if not release.is_release(folder):
        raise UserError(
            f"{options.folder} is no folder that flm export --format=hub made; make one first"
        )
    release.read(folder)  # damaged?
    card = folder / "README.md"
    if not card.is_file() or LICENCE in card.read_text(encoding="utf-8"):
        raise UserError(f"{card} does not say the licence yet; replace {LICENCE} in it")
    address = options.repo if hub.is_address(options.repo) else f"{hub.SCHEME}{options.repo}"
    print(f"uploaded: {hub.push(folder, address, options.private)}")
    print(f'others load it with  flm_jax.load("{address}")')


COMMAND = Command(__doc__, Options, run)
