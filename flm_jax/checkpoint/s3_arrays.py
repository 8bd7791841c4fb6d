"""Shows orbax the way to S3, which tensorstore knows and orbax 0.12.8 does not.

orbax asks one function what to tell tensorstore about a folder: for every array that is written or
read, and for the merge of what several processes wrote. Its registry of array handlers is no help,
for these call the same function, and the merge is not theirs. So the function is wrapped. For an
address that begins with s3://, which orbax would refuse, orbax is asked about the same place in
Google's storage, and the driver in its answer is exchanged. No other address sees a difference.

When orbax has this itself (its pull request 2739), `test_orbax_still_cannot_write_to_s3` fails and
this file can go.
"""

import collections.abc
import functools
from typing import Any

from flm_jax.errors import UserError

_SCHEME = "s3://"
_WRAPPED = "wrapped_for_s3"


def teach_orbax(spec_of: collections.abc.Callable[[str], dict[str, Any]]) -> None:
    """Wraps orbax's function, once; ``spec_of`` a bucket is what tensorstore opens.

    Raises UserError if orbax is not as it is known here, before anything is written.
    """
    from orbax.checkpoint import version

    try:
        from orbax.checkpoint._src.serialization import ocdbt_utils, tensorstore_utils

        if hasattr(tensorstore_utils.build_kvstore_tspec, _WRAPPED):
            return
        original = tensorstore_utils.build_kvstore_tspec
        tensorstore_utils.build_kvstore_tspec = _wrapped(original, spec_of)
        try:
            read = tensorstore_utils.ArrayReadSpec(
                f"{_SCHEME}bucket/run", "w", use_zarr3=False, use_ocdbt=True
            )
            reached = read.json["kvstore"]["base"]
            if (reached["driver"], reached["path"]) != ("s3", "run"):
                raise ValueError(f"arrays are looked for at {reached}")
            if ocdbt_utils.ts_utils is not tensorstore_utils:
                raise ValueError("the merge of several processes goes another way")
        except Exception:
            tensorstore_utils.build_kvstore_tspec = original
            raise
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"orbax-checkpoint {version.__version__} cannot be shown the way to {_SCHEME} "
            f"({type(error).__name__}: {error}); install orbax-checkpoint 0.12.8"
        ) from error


def _wrapped(original, spec_of):
    @functools.wraps(original)
    def build(directory: str, *args, **kwargs) -> dict[str, Any]:
        if not str(directory).startswith(_SCHEME):
            return original(directory, *args, **kwargs)
        spec = original(f"gs://{str(directory).removeprefix(_SCHEME)}", *args, **kwargs)
        base = spec.get("base", spec)  # below the database of arrays, if there is one
        known = base.get("driver") in ("gcs", "gcs_grpc") and set(base) == {
            "driver",
            "bucket",
            "path",
        }
        if not known:
            raise ValueError(f"orbax describes a bucket as {base}")
        base.update(spec_of(base["bucket"]))
        return spec

    setattr(build, _WRAPPED, True)
    return build
