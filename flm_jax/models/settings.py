"""What a network is made from; a config says what each of these means."""

from typing import Protocol


class Settings(Protocol):
    """What `dit.build` reads."""

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def cond_dim(self) -> int: ...

    @property
    def mlp_ratio(self) -> int: ...

    @property
    def dropout(self) -> float: ...

    @property
    def attention_cap(self) -> float: ...

    @property
    def attention(self) -> str: ...

    @property
    def learned_positions(self) -> int: ...

    @property
    def logit_cap(self) -> float: ...

    @property
    def causal(self) -> bool: ...

    @property
    def mask_token(self) -> bool: ...

    @property
    def two_times(self) -> bool: ...

    @property
    def loss_weighting(self) -> bool: ...

    @property
    def self_conditioning(self) -> bool: ...

    @property
    def dtype(self) -> str: ...

    @property
    def remat(self) -> str: ...

    @property
    def scan_unroll(self) -> int: ...

    @property
    def head_init(self) -> str: ...

    @property
    def head_chunk(self) -> int: ...
