"""Upload files to a repository of the Hub in one commit. A repeated upload sends what has not arrived."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from trainer.errors import DataError, RankzeroError, StoreError, UsageError
from trainer.push.files import Upload, uploads
from trainer.redaction import HIDDEN, redacted
from trainer.report.run_files import reading
from trainer.rundir import RunDir

OWN_FOLDERS = ("export/", "adapter/")  # files there that the run does not have are removed
DENIED = (401, 403)


def push_run(
    run: RunDir, repo: str, *, public: bool = False, dry_run: bool = False, with_rows: bool = False, message: str | None
) -> Iterator[str]:
    """Upload a run, or only list its files, and yield what was done as lines.

    Raises:
        RankzeroError: as `uploads` and `push`.
    """
    with reading(run.path):
        files = uploads(run, repo, with_rows=with_rows)
    if dry_run:
        yield from (f"{file.bytes:>14,}  {file.path}" for file in files)
        yield f"{sum(file.bytes for file in files):>14,}  bytes in {len(files)} files"
        yield f"dry run: nothing was uploaded to {repo}; --no-dry-run uploads these files"
        return
    url, changed, removed = push(run, repo, files, public=public, message=message)
    yield from (f"removed from {repo}: {name}" for name in removed)
    yield f"pushed: {url}" if changed else f"unchanged: {url} has these files"


def push(
    run: RunDir, repo: str, files: Sequence[Upload], *, public: bool = False, message: str | None = None
) -> tuple[str, bool, list[str]]:
    """Upload files in one commit. Large files that the Hub already has are not sent again.

    Weights and artifacts of an earlier push that are not among the files are removed in the same commit.

    Args:
        public: a new repository can be read by everybody. An existing one stays as it is.

    Returns:
        The URL of the commit, whether it changed anything, and the removed files.

    Raises:
        UsageError: no token, offline, no permission, or an existing public repository without `public`.
        DataError: the Hub refuses the model card.
        StoreError: the Hub has not answered or has refused the files.
    """
    token = get_token()
    if constants.HF_HUB_OFFLINE:
        raise UsageError("push: HF_HUB_OFFLINE is set; unset it, or use --dry-run")
    if not token:
        raise UsageError("push: there is no token of the Hub; run `hf auth login`, or set HF_TOKEN")
    try:
        return _push(HfApi(token=token), run, repo, files, public, message)
    except RankzeroError:
        raise
    except Exception as error:  # of the library and of the HTTP client below it
        raise _told(repo, error, token) from None


def _push(
    api: HfApi, run: RunDir, repo: str, files: Sequence[Upload], public: bool, message: str | None
) -> tuple[str, bool, list[str]]:
    api.create_repo(repo, private=not public, exist_ok=True)
    info = api.repo_info(repo)
    if not info.private and not public:
        raise UsageError(f"{repo} can be read by everybody; --public uploads to it, or make it private on the Hub")
    names = {file.path for file in files}
    stale = [name for name in api.list_repo_files(repo) if name not in names and _is_own(name)]
    step = run.stages().get("model", {}).get("step")
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(file.path, str(c) if isinstance(c := file.content, Path) else c) for file in files),
        *(CommitOperationDelete(name) for name in stale),
    ]
    text = message or f"Upload rankzero run {run.path.resolve().name}, step {step}"
    commit = api.create_commit(repo, operations, commit_message=text)
    return f"{api.endpoint}/{repo}/commit/{commit.oid}", commit.oid != info.sha, stale


def _is_own(name: str) -> bool:
    """Whether a file of a repository may be one of an earlier push that would be used in place of a new one."""
    weights = "/" not in name and name.endswith((".safetensors", ".safetensors.index.json"))
    return weights or name.startswith(OWN_FOLDERS)


def _told(repo: str, error: Exception, token: str) -> RankzeroError:
    """Return the error for the user, without the token."""
    text = redacted(" ".join(f"{type(error).__name__}: {error}".split()).replace(token, HIDDEN))
    if isinstance(error, ValueError) and "README.md" in text:
        return DataError(f"{repo}: the Hub refuses the model card. {text}")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code in DENIED:
        return UsageError(f"{repo}: the Hub denies access; the token needs write access to it. {text}")
    return StoreError(f"{repo}: the upload is not complete; the same command resumes. {text}")
