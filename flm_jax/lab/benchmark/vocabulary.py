"""How large the vocabulary of a config is, where nothing is tokenized and no text is at hand."""

from flm_jax import config as config_lib
from flm_jax.errors import UserError

VOCABULARIES = {"gpt2": 50258, "bert-base-uncased": 30522}


def vocabulary_size(config: config_lib.Config, given: int = 0) -> int:
    """``given`` (of --vocab), or the size that the config's tokenizer has.

    Raises UserError if that depends on a text.
    """
    name, options = config.tokenizer.name, config.tokenizer.options
    size = int(given or options.get("vocab_size") or VOCABULARIES.get(name, 0))
    if not given and name == "gpt2" and not options.get("pad", True):
        size -= 1
    if not size:
        raise UserError(
            f"the vocabulary of the tokenizer {name!r} is not known before it has "
            "seen its text; give --vocab=SIZE"
        )
    return size
