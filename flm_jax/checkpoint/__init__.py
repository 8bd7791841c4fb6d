"""Checkpoints one can trust: asynchronous, atomic, hashed, restored onto any mesh.

The only package that knows orbax, which it imports when first needed. A step is a folder

    FOLDER/1200/{params,opt_state,ema,...}/   one orbax item each, so that any can be read alone
    FOLDER/1200/meta/                         JSON: config, position in the data, ...
    FOLDER/1200/MANIFEST.json                 size and SHA-256 of every file of the items

The manifest is written while the folder still has its temporary name, so orbax's rename commits
data and manifest together: a step without one was made by someone else or by an older version.
orbax itself checks no hashes and restores flipped bytes as wrong numbers. In a bucket, where
nothing is renamed, a step counts when its manifest is there, which is written last.

    checkpoints.py   Checkpoints: what the rest of the code uses
    folder.py        the place of the steps: a local folder
    bucket.py        ... gs://bucket/folder or s3://..., written directly
    bucket_workdir.py  the other files of a run whose workdir is in a bucket
    lease.py         which command may write there
    address.py       a place in a bucket, and what goes wrong there
    stores.py        what differs between the services that hold buckets
    s3_arrays.py     shows orbax the way to S3
    manifest.py      hashes, written and verified
    arrays.py        one item: its description, whether it fits, reading it
"""

from flm_jax.checkpoint.address import Address, is_address, removal
from flm_jax.checkpoint.bucket_workdir import (
    CHECKPOINTS_FOLDER,
    BucketWorkdir,
    checkpoints_of,
    fetched,
    put,
)
from flm_jax.checkpoint.checkpoints import Checkpoints, NoGoodStep
from flm_jax.checkpoint.manifest import MANIFEST, Damaged, verify

__all__ = [
    "CHECKPOINTS_FOLDER",
    "MANIFEST",
    "Address",
    "BucketWorkdir",
    "Checkpoints",
    "Damaged",
    "NoGoodStep",
    "checkpoints_of",
    "fetched",
    "is_address",
    "put",
    "removal",
    "verify",
]
