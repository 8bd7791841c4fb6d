"""What differs between the services that hold buckets; `bucket.py` has what is the same.

Two libraries write to each: tensorstore the arrays, fsspec (gcsfs, s3fs) the small files. A store
says how both are set up, where an object's checksum is in a listing, and what errors mean.
"""

import collections.abc
import functools
import hashlib
import os
import re
from typing import Any, ClassVar, TypeAlias

from flm_jax.checkpoint import manifest
from flm_jax.errors import UserError

PATIENCE_S = 30.0
FileSystem: TypeAlias = Any  # an fsspec.AbstractFileSystem, which has no usable types
Files = dict[str, tuple[int, str]]  # path to (size, kind of checksum and checksum)


class Store:
    """One service. ``troubles`` are (pattern in an error's line, what it means, what to do)."""

    scheme: ClassVar[str]
    library: ClassVar[str]
    extra: ClassVar[str]
    removal: ClassVar[tuple[str, ...]]  # the command that removes a folder
    troubles: ClassVar[tuple[tuple[str, str, str], ...]]

    def file_system(self, url: str) -> FileSystem:
        """The file system that etils, and so orbax, uses; raises UserError without the library."""
        # Beside TensorFlow etils would take its file system, which has caches of its own.
        os.environ.setdefault("EPATH_USE_TF", "false")
        # Else tensorstore waits half an hour for the answer to a request that the service has
        # dropped (google/tensorstore issue 291): curl gives up on one that stands still.
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "30")
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
        try:
            return self._file_system()
        except ImportError as error:
            raise UserError(
                f"{url} needs the library {self.library} and what comes with it "
                f"({error}); run pip install 'flm_jax[{self.extra}]'"
            ) from error

    def _file_system(self) -> FileSystem:
        raise NotImplementedError

    def look_for(self, bucket: str, prefix: str) -> None:
        """Raises FileNotFoundError if there is no such bucket, in half a minute at most."""
        raise NotImplementedError

    def tensorstore_spec(self, bucket: str) -> dict[str, Any]:
        raise NotImplementedError

    def digest(self, info: collections.abc.Mapping[str, Any]) -> str:
        """The checksum in an entry of a listing."""
        raise NotImplementedError

    def for_manifest(self, files: Files, read: collections.abc.Callable[[str], bytes]) -> Files:
        """The same files with the hashes that are to be written down."""
        return files

    def sentence(self, line: str) -> str | None:
        """What a known error means, with the remedy."""
        for pattern, meaning, remedy in self.troubles:
            if re.search(pattern, line):
                return f"{meaning} ({line}); {remedy}"
        return None


class GoogleStorage(Store):
    """gs://, with application default credentials; the checksum is a CRC32C."""

    scheme, library, extra = "gs", "gcsfs", "gcs"
    removal = "gcloud", "storage", "rm", "--recursive"
    troubles = (
        (
            r"\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|Unauthorized|Forbidden|redentials|"
            r"RefreshError|does not have storage\.",
            "access is refused",
            "log in with gcloud auth application-default login, or give the account the roles "
            "Storage Object Admin and Storage Legacy Bucket Reader on this bucket",
        ),
        (
            r"TimeoutError|UNAVAILABLE|DEADLINE_EXCEEDED|ConnectionError",
            "the service does not answer",
            "check the network; the same command tries again",
        ),
    )

    def _file_system(self):
        import logging

        import fsspec.config
        import gcsfs  # noqa: F401
        import google.cloud.storage  # noqa: F401, orbax asks it whether folders are real

        # It reports trouble by exceptions as well, which become sentences.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        # Listings that gcsfs remembers would not show what tensorstore has written since.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils asks: the same object

    def look_for(self, bucket, prefix):
        from google.api_core.exceptions import NotFound
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY

        patience = {"timeout": PATIENCE_S, "retry": DEFAULT_RETRY.with_timeout(PATIENCE_S)}
        try:  # as orbax will: it needs storage.buckets.get
            storage.Client().get_bucket(bucket, **patience)
        except NotFound as error:
            raise FileNotFoundError(bucket) from error

    def tensorstore_spec(self, bucket):
        return {"driver": "gcs", "bucket": bucket}

    def digest(self, info):
        return manifest.CRC32C + info["crc32c"]


class S3(Store):
    """s3://, of Amazon or anyone who speaks the same; the checksum is an ETag.

    An ETag tells one content of an object from another, nothing more. Of an object that was sent in
    one piece it is the MD5 of the bytes, unless the bucket encrypts with keys of its owner; of one
    sent in parts, "HASH-PARTS". It is what a listing gives at every such service, so a replaced or
    truncated object is seen; a bit that rots in the service is not, as S3 never changes it for
    that: the service has to find this out by itself.

    All settings are botocore's: AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION, AWS_PROFILE and
    the files of a profile. What it makes of them, tensorstore is told.
    """

    scheme, library, extra = "s3", "s3fs", "s3"
    removal = "aws", "s3", "rm", "--recursive"
    troubles = (
        (
            r"NoCredentials|PartialCredentials|ProfileNotFound|CredentialRetrieval|TokenRetrieval|"
            r"[Uu]nable to locate credentials",
            "there are no credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run aws configure",
        ),
        (
            r"AuthorizationHeaderMalformed|PermanentRedirect|\b301\b",
            "the region is not that of the bucket",
            "set AWS_REGION to where the bucket is",
        ),
        (
            r"\b40[13]\b|PERMISSION_DENIED|AccessDenied|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|"
            r"ExpiredToken|InvalidToken|PermissionError",
            "access is refused",
            "check the keys, and that they allow s3:ListBucket, s3:GetObject, s3:PutObject and "
            "s3:DeleteObject on this bucket",
        ),
        (
            r"EndpointConnection|ConnectTimeout|ReadTimeout|ConnectionClosed|SSLError|TimeoutError",
            "the service does not answer",
            "check AWS_ENDPOINT_URL and the network; the same command tries again",
        ),
    )

    def _file_system(self):
        import botocore.session  # noqa: F401
        import fsspec.config
        import s3fs  # noqa: F401

        if region := os.environ.get("AWS_REGION"):  # botocore knows the other name only
            os.environ.setdefault("AWS_DEFAULT_REGION", region)
        ours = fsspec.config.conf.setdefault("s3", {})
        ours["use_listings_cache"] = False  # as with gcsfs
        # s3fs adds tries of its own: with botocore's defaults a dead service takes six minutes.
        ours.setdefault("config_kwargs", {"retries": {"total_max_attempts": 2}})

        from flm_jax.checkpoint import s3_arrays

        s3_arrays.teach_orbax(self.tensorstore_spec)
        return fsspec.filesystem("s3")  # as etils asks: the same object

    def look_for(self, bucket, prefix):
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import ClientError

        patience = Config(
            connect_timeout=PATIENCE_S / 3,
            read_timeout=PATIENCE_S / 3,
            retries={"total_max_attempts": 2},
        )
        client = botocore.session.get_session().create_client("s3", config=patience)
        try:  # not HEAD, whose errors have no words
            client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchBucket":
                raise FileNotFoundError(bucket) from error
            raise

    def tensorstore_spec(self, bucket):
        environment = {name: v for name, v in os.environ.items() if name.startswith("AWS_")}
        return {**_resolved(tuple(sorted(environment.items()))), "bucket": bucket}

    def digest(self, info):
        return manifest.ETAG + info["ETag"].strip('"')

    def for_manifest(self, files, read):
        """ETags that are MD5s are called so: a copy can be compared with them too.

        Whether they are is a matter of the bucket, and asked of the smallest object.
        """
        probe = min(files, key=lambda name: files[name][0])
        if (
            manifest.ETAG + hashlib.md5(read(probe), usedforsecurity=False).hexdigest()
            != (files[probe][1])
        ):
            return files
        return {
            name: (size, etag if "-" in etag else manifest.MD5 + etag.removeprefix(manifest.ETAG))
            for name, (size, etag) in files.items()
        }


@functools.lru_cache(maxsize=8)  # it is needed for every array
def _resolved(environment: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """What botocore makes of the environment, for tensorstore."""
    import botocore.session

    session = botocore.session.get_session()
    meta = session.create_client("s3").meta
    # Attempts, 1 to 16 s apart: tensorstore's own 32 hold a process up for a quarter of an hour.
    spec = {"driver": "s3", "s3_request_retries": {"max_retries": 8, "max_delay": "16s"}}
    if not meta.endpoint_url.endswith(".amazonaws.com"):  # there it asks for the bucket's region
        spec |= {"endpoint": meta.endpoint_url.rstrip("/"), "aws_region": meta.region_name}
    # It looks in the same places, but not for AWS_PROFILE (0.1.86), and where that is not needed it
    # complains on the screen of each place that is empty.
    if getattr(session.get_credentials(), "method", "") == "env":
        spec["aws_credentials"] = {"type": "environment"}
    else:
        spec["aws_credentials"] = {"type": "default", "profile": session.profile or "default"}
    return spec


STORES: dict[str, Store] = {store.scheme: store for store in (GoogleStorage(), S3())}
