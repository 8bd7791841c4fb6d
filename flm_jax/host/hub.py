"""Models of a hub, hf://USER/REPO[@REVISION], in the cache that all Hugging Face libraries share.

The library huggingface_hub (extra [hub]) downloads, resumes, and keeps what is there; its settings
are variables of the environment: HF_TOKEN, HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT.
"""

import contextlib
import errno
import os
import pathlib
import re
import types
from collections.abc import Iterator

from flm_jax.errors import UserError, first_line
from flm_jax.host import folders

SCHEME = "hf://"
ENDPOINT = "https://huggingface.co"
# What a model is read from: a release of ours, or an official folder with its vocabulary.
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer/*",
    "tokenizer.json",
    "vocab.*",
    "encoder.json",
    "merges.txt",
)
# A release of ours (`interop.release`), its card included.
_RELEASED = ("config.json", "model.safetensors", "tokenizer/*", "README.md")
_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")
_ON = ("1", "true", "yes", "on")


def is_address(path: str | os.PathLike) -> bool:
    return str(path).startswith(SCHEME)


def fetch(address: str) -> pathlib.Path:
    """The folder of a model in the cache, downloaded unless it is there.

    Raises UserError for an address that is none, a missing library, a model or revision that is
    not there or not to be read, a connection that fails, and a disk that is full. A file that
    breaks off is continued as long as more of it comes; whole files are kept for the next call.
    """
    repo, revision = _parts(address)
    hub, endpoint, offline = _library(address), _endpoint(), _offline()
    with _sentences(repo, revision, endpoint, offline):
        return pathlib.Path(
            hub.snapshot_download(
                repo,
                revision=revision,
                cache_dir=folders.hugging_face("HF_HUB_CACHE", "hub"),
                allow_patterns=list(_FILES),
                library_name="flm_jax",
                endpoint=endpoint,
                local_files_only=offline,
            )
        )


def push(folder: pathlib.Path, address: str, private: bool = False) -> str:
    """Uploads a release (`interop.release`) as one commit; returns the address of that commit.

    The repository is made unless it is there; what it holds stays in its history. Nothing is
    committed unless every file has arrived.

    Raises UserError for an address that is none, a missing library or token, a token that may not
    write, a revision that is not there, and a connection that fails.
    """
    repo, revision = _parts(address)
    hub, endpoint = _library(address), _endpoint()
    if _offline():
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    api = hub.HfApi(endpoint=endpoint, library_name="flm_jax")
    with _writing(repo, revision, endpoint):
        if not api.repo_exists(repo):  # create_repo asks, too, but knows no endpoint of others
            api.create_repo(repo, private=private)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message="A model of flm_jax",
            allow_patterns=[*_RELEASED],
        )
    return str(done.commit_url)


def _parts(address: str) -> tuple[str, str | None]:
    """(USER/REPO, revision or None) of hf://USER/REPO[@REVISION]."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(
            f"{address} is not the address of a model; write hf://USER/REPO or "
            "hf://USER/REPO@REVISION"
        )
    return found["repo"], found["revision"]


def _library(address: str) -> types.ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{address} needs the package huggingface_hub, which is not installed; run pip install "
            "'flm_jax[hub]'"
        ) from None
    return huggingface_hub


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _ON


@contextlib.contextmanager
def _writing(repo: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """What the library raises while it uploads, in one sentence."""
    from huggingface_hub import errors

    again = "nothing was committed, so try again later"
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise UserError(
            "there is no token to write with; set HF_TOKEN, or run hf auth login"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{endpoint} refuses to write {repo} ({status}); set HF_TOKEN to a token of "
                f"{repo.partition('/')[0]} that may write"
            ) from error
        if status == 404:
            raise UserError(
                f"{repo} has no branch {revision or 'main'} at {endpoint}; omit the revision, or "
                "make that branch first"
            ) from error
        raise UserError(f"{endpoint} answered {status} for {repo}; {again}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{repo} is no name of a model ({first_line(error)})") from None
    except Exception as error:  # of the HTTP library, which has changed from version to version
        raise UserError(f"cannot upload {repo} ({first_line(error)}); {again}") from error


@contextlib.contextmanager
def _sentences(repo: str, revision: str | None, endpoint: str, offline: bool) -> Iterator[None]:
    """What the library raises, in one sentence."""
    from huggingface_hub import errors

    named = repo if revision is None else f"{repo}@{revision}"
    kept = "whole files are kept, so try again later"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is gated; accept its terms at {endpoint}/{repo}, and set HF_TOKEN to a token "
            "of that account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is no model {repo} at {endpoint}, or it is private; check the name, or set "
            "HF_TOKEN to a token that may read it"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{repo} has no revision {revision}; give a branch, a tag or a commit of it, or omit it"
        ) from None
    except errors.LocalEntryNotFoundError as error:  # not in the cache, and no way to get it
        if offline:
            raise UserError(
                f"{named} is not in the cache, or not all of it, and HF_HUB_OFFLINE is set; unset "
                "that, or load it once with a network"
            ) from None
        why = error.__cause__ or error
        if isinstance(why, errors.HfHubHTTPError):
            raise _answered(why.response.status_code, named, endpoint) from error
        raise UserError(
            f"cannot reach {endpoint} for {named} ({first_line(why)}), and it is not in the cache; "
            "try again later"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _answered(error.response.status_code, named, endpoint) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise UserError(
                f"cannot write {error.filename or 'the cache'} for {named} ({error.strerror}); "
                "free space, or set HF_HOME to a folder that you can write to"
            ) from error
        raise UserError(f"cannot download {named} ({first_line(error)}); {kept}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{repo} is no name of a model ({first_line(error)})") from None
    except Exception as error:  # of the HTTP library, which has changed from version to version
        raise UserError(f"cannot download {named} ({first_line(error)}); {kept}") from error


def _answered(status: int, named: str, endpoint: str) -> UserError:
    if status in (401, 403):
        return UserError(
            f"{endpoint} refuses {named} ({status}); set HF_TOKEN to a valid token that may read it"
        )
    return UserError(
        f"{endpoint} answered {status} for {named}; whole files are kept, so try again later"
    )
