"""Print a script that completes commands and options in a shell.

    flm completion bash >> ~/.bashrc
    flm completion zsh >> ~/.zshrc

It is there in shells that are opened afterwards.
"""

import dataclasses

from flm_jax.cli.command import Command
from flm_jax.cli.options import options_of
from flm_jax.config import settings
from flm_jax.knobs import knob

_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
_SCRIPT = """\
_flm() {
  local words
  case "${COMP_WORDS[*]:1:COMP_CWORD-1} " in
%s
  esac
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -o nospace -F _flm flm"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    shell: str = knob("", "which one", word=True, choices=("bash", "zsh"), needed="say bash or zsh")


def run(options: Options) -> None:
    from flm_jax.cli import COMMANDS, load

    cases = []
    for name in sorted(COMMANDS, key=len, reverse=True):
        known = options_of(load(name).options).values()
        words = [f"--{o.name}" if o.plain_type is bool else f"--{o.name}=" for o in known]
        if "--config=" in words:
            words += [f"--config.{key}=" for key, _ in settings.knobs()]
        cases.append((f'"{name} "*', words))
    cases.append(("*", [name for name in COMMANDS if " " not in name]))
    lines = "\n".join(f'    {pattern}) words="{" ".join(words)}" ;;' for pattern, words in cases)
    print((_ZSH if options.shell == "zsh" else "") + _SCRIPT % lines)


COMMAND = Command(__doc__, Options, run)
