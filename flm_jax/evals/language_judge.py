"""A synthetic language as a judge: it knows the probability of a whole row, not of its tokens.

A row is `[BOS] document [EOS] [PAD] ...` and has the probability of its document; what is no
document of the language has none, and one such row would make every mean infinite. So the judge
says that a share `_ANYTHING` of all rows is anything at all, each token uniform:

    p(row) = (1 - a) p(document) + a V^-(L - 1)

A true row costs a nats more than its exact value, an invalid one ln V a token and ln(1 / a).
"""

import dataclasses
import math

import numpy as np

from flm_jax.data.synthetic import Documents, Language
from flm_jax.evals import truth
from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.base import sha256

_ANYTHING = 1e-3


@dataclasses.dataclass(frozen=True)
class LanguageJudge:
    """A `base.Judge`; see there.

    Attributes:
      name: of the language.
      language: with its exact log-probability of a document.
      tokenizer: of the rows.
    """

    name: str
    language: Language
    tokenizer: Tokenizer

    @property
    def longest(self) -> int:
        return 0

    @property
    def fingerprint(self) -> str:
        language = f"{self.name} {self.language.size} {self.language.entropy!r}"
        return sha256(language, self.tokenizer.fingerprint)

    def score(self, tokens_NL: np.ndarray) -> np.ndarray:
        """-log p of every row, spread evenly over its tokens but the first: float64 (N, L - 1)."""
        tokens_NL = np.asarray(tokens_NL)
        inner = tokens_NL.shape[1] - 1
        found = truth.documents(tokens_NL, self.tokenizer)
        log_p_N = np.array([-math.inf if x is None else self.language.log_prob(x) for x in found])
        anything = math.log(_ANYTHING) - inner * math.log(self.tokenizer.vocab_size)
        nats_N = -np.logaddexp(math.log1p(-_ANYTHING) + log_p_N, anything)
        return np.repeat(nats_N[:, None] / inner, inner, axis=1)


def of_documents(documents: object, packing: str, tokenizer: Tokenizer) -> LanguageJudge | None:
    """The judge of a corpus of a known language with one document in a row; None for any other."""
    if not isinstance(documents, Documents) or packing != "one_per_row":
        return None
    return LanguageJudge(f"the language {documents.language.name}", documents.language, tokenizer)
