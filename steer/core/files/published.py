"""Files that others publish, pinned by commit and hash: how they come to this machine.

Files of the Hugging Face hub are in its cache, files on GitHub in `HF_HOME/steer`, by repository
and commit. Not by pooch: the hub's client and torch.hub download, and both are here already.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from steer.core.errors import SteerError, first_line
from steer.core.files.atomic import file_sha256


@dataclass(frozen=True)
class PublishedFile:
    """One published file.

    Attributes:
        repository: `"<owner>/<name>"`.
        filename: Path inside the repository.
        revision: Commit, tag or branch that is fetched by default; `"main"` is unpinned.
        size_bytes: Its size (three digits of it where no more is known); `None` if unknown.
        licence: As the publisher states it.
        host: `"huggingface.co"` or `"github.com"`.
        sha256: Of the file at `revision`: a download is held against it before it gets its name,
            and a kept file at every use. `None` for files of gigabytes on the hub, whose client
            checks what it downloads, and where it is not known.
        dataset: Whether a repository of the hub is a dataset; else it is a model.
        release: Whether the file is an asset of a release on GitHub, and `revision` its tag.
    """

    repository: str
    filename: str
    revision: str
    size_bytes: int | None
    licence: str
    host: str = "huggingface.co"
    sha256: str | None = None
    dataset: bool = False
    release: bool = False

    @property
    def size(self) -> str:
        """The size for people, as `"1.97 GB"`; "size unknown" where it is."""
        if self.size_bytes is None:
            return "size unknown"
        for unit, scale, digits in (("GB", 1e9, 2), ("MB", 1e6, 2), ("kB", 1e3, 0)):
            if self.size_bytes >= scale:
                return f"{self.size_bytes / scale:.{digits}f} {unit}"
        return f"{self.size_bytes} B"

    @property
    def page(self) -> str:
        """The repository's page."""
        return f"https://{self.host}/{'datasets/' if self.dataset else ''}{self.repository}"

    def url(self, revision: str | None = None) -> str:
        """The address for a download by hand."""
        path, revision = quote(self.filename), revision or self.revision
        if self.release:
            return f"{self.page}/releases/download/{revision}/{path}"
        if self.host == "github.com":
            return f"https://raw.githubusercontent.com/{self.repository}/{revision}/{path}"
        return f"{self.page}/resolve/{revision}/{path}"

    def cache_path(self, revision: str | None = None) -> Path:
        """Where a file from GitHub is kept, and what steer notes about one of the hub."""
        from huggingface_hub import constants

        where = Path(constants.HF_HOME, "steer", *self.repository.split("/"))
        return where / (revision or self.revision) / self.filename

    def by_hand(self, revision: str | None = None, option: str | None = None) -> str:
        """The end of an error: how to get the file by hand.

        Args:
            revision: As for `fetch`.
            option: The argument that takes a local path instead, if there is one.
        """
        from huggingface_hub import constants

        revision, name = revision or self.revision, Path(self.filename).name
        if self.host == "github.com":
            command = f"curl -L -o '{name}' '{self.url(revision)}'"
            place = f"copy it to {self.cache_path(revision)} on this machine"
        else:
            kind = "--repo-type dataset " if self.dataset else ""
            command = f"hf download {kind}{self.repository} {shlex.quote(self.filename)}"
            command += f" --revision {revision}"
            place = f"copy the cache folder to {constants.HF_HUB_CACHE} on this machine"
        ways = f"pass {option}='.../{name}', or {place}" if option else place
        return f"where there is a network, run `{command}` ({self.page}, {self.size}), then {ways}"


def fetch(
    file: PublishedFile,
    label: str,
    error: type[SteerError],
    *,
    revision: str | None = None,
    option: str | None = None,
) -> Path:
    """The local path of a published file; downloads it unless it is in the cache.

    Args:
        file: What to fetch.
        label: What it is for, at the start of an error: `"hpsv2.1"`.
        error: The error to raise.
        revision: Another commit, tag or branch (as `"main"`), whose hash is not known; default the
            file's own.
        option: The argument that takes a local path instead, for the message.

    Raises:
        SteerError: Of the kind `error`: not cached, and it cannot be downloaded, says which file to
            bring, how large it is, and by which command; or its hash is another one.
    """
    revision = revision or file.revision
    sha256 = file.sha256 if revision == file.revision else None
    try:
        path = (_from_github if file.host == "github.com" else _from_hub)(file, revision, sha256)
    except Exception as cause:  # the hub's client raises many kinds
        raise error(
            f"{label}: {file.filename!r} of {file.repository} is not in the cache and cannot be "
            f"downloaded ({type(cause).__name__}: {first_line(cause)}): "
            f"{file.by_hand(revision, option)}"
        ) from cause
    if sha256:
        check_sha256(path, sha256, "the pinned one", label, error)
    return path


def check_sha256(path: Path, sha256: str, kind: str, label: str, error: type[SteerError]) -> None:
    """Raise `error` unless the file at `path` has this hash, which is `kind`."""
    digest = file_sha256(path)
    if digest != sha256:
        raise error(
            f"{label}: {str(path)!r} is not the published file: its sha256 is {digest}, {kind} "
            f"{sha256}; delete it and run again"
        )


def _from_hub(file: PublishedFile, revision: str, _: str | None) -> Path:
    import huggingface_hub

    kind = "dataset" if file.dataset else "model"
    found = huggingface_hub.hf_hub_download(
        file.repository, file.filename, revision=revision, repo_type=kind
    )
    return Path(found)


def _from_github(file: PublishedFile, revision: str, sha256: str | None) -> Path:
    """The kept file, else a download: into a file beside it, which is checked and then renamed."""
    from huggingface_hub import constants
    from torch.hub import download_url_to_file

    path = file.cache_path(revision)
    if path.is_file():
        return path
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    download_url_to_file(file.url(revision), str(path), sha256, progress=False)
    return path
