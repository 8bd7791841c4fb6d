"""What contracts have in common: a class that breaks one is refused where it is defined.

A contract is a base class in the ``base.py`` of its folder. It declares every attribute and method
that the rest of the code may ask for, with a default wherever there is a sensible one.
"""

import abc
import dataclasses


class Contract(abc.ABC):  # noqa: B024  (its subclasses have abstract methods)
    """Base of the contracts: a subclass must have all that is marked with `abc.abstractmethod`.

    Python itself notices a missing method only when an object is made, which may be after hours of
    training. Here the class statement raises TypeError. A class that leaves something to its own
    subclasses says so: ``class Half(Loss, unfinished=True)``.
    """

    def __init_subclass__(cls, unfinished: bool = False, **options: object):
        super().__init_subclass__(**options)
        names = {name for base in cls.__mro__ for name in vars(base)}
        lacking = sorted(name for name in names if _is_abstract(cls, name))
        if lacking and not unfinished:
            raise TypeError(f"class {cls.__name__} lacks {', '.join(lacking)}")


def _is_abstract(cls: type, name: str) -> bool:
    owner = next(base for base in cls.__mro__ if name in vars(base))
    marked = vars(owner)[name]
    return bool(getattr(marked, "__isabstractmethod__", False))  # a mark of Python's own


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a loss or a sampler is made for; everything else it does not look at.

    Attributes:
      teacher: a frozen denoiser, network "teacher".
      starts_as: losses of the kind of model that it starts as, which is its first teacher; training
        replaces that, so that it is part of the loss's state, not frozen.
      masked_teacher: a frozen masked diffusion model, network "masked_teacher".
      residual: a frozen correction of the teacher, network "residual".
      ema: the student with the EMA of its parameters, network "ema".
      two_times: a student of two times, a flow map (`model.two_times`).
      forward_derivatives: derivatives of the student taken forward, by `jax.jvp`.
      causal: a causal student (`model.causal`).
      mask_token: a student with a mask token (`model.mask_token`).
      given: some tokens are given, at time 1 (times per position).
      self_conditioning: a student that sees its own estimate (`model.self_conditioning`) is as good
        as one that does not; without it, only one that does not.
      teacher_self_conditioning: a teacher that sees its own estimate.
    """

    teacher: bool = False
    starts_as: tuple[str, ...] = ()
    masked_teacher: bool = False
    residual: bool = False
    ema: bool = False
    two_times: bool = False
    forward_derivatives: bool = False
    causal: bool = False
    mask_token: bool = False
    given: bool = False
    self_conditioning: bool = False
    teacher_self_conditioning: bool = False

    @property
    def named_teacher(self) -> bool:
        """Whether `config.teacher` must name a model."""
        return self.teacher or bool(self.starts_as)
