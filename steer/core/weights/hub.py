"""Downloads of published reward weights: one table of files, each with commit, size and licence.

Files are pinned to a commit; `revision="main"` would say that one is not. Files on the Hugging Face
hub are kept in its cache, files on GitHub in torch's.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

from steer.core.errors import CheckpointError


@dataclass(frozen=True)
class HubFile:
    """One published file.

    Attributes:
        repository: `"<owner>/<name>"`.
        filename: Path inside the repository.
        revision: Commit, tag or branch that is fetched by default; `"main"` is unpinned.
        size_bytes: Its size (three digits of it where no more is known); `None` if unknown.
        licence: As the publisher states it; empty where none is stated.
        host: `"huggingface.co"` or `"github.com"`.
        sha256: Checked after a download from GitHub (the hub's client checks its own).
    """

    repository: str
    filename: str
    revision: str
    size_bytes: int | None
    licence: str
    host: str = "huggingface.co"
    sha256: str | None = None

    @property
    def size(self) -> str:
        """The size for people, as `"1.97 GB"`; "size unknown" where it is."""
        if self.size_bytes is None:
            return "size unknown"
        for unit, scale, digits in (("GB", 1e9, 2), ("MB", 1e6, 2), ("kB", 1e3, 0)):
            if self.size_bytes >= scale:
                return f"{self.size_bytes / scale:.{digits}f} {unit}"
        return f"{self.size_bytes} B"

    def url(self, revision: str | None = None) -> str:
        """The address for a download by hand."""
        path, revision = quote(self.filename), revision or self.revision
        if self.host == "github.com":
            return f"https://raw.githubusercontent.com/{self.repository}/{revision}/{path}"
        return f"https://huggingface.co/{self.repository}/resolve/{revision}/{path}"


_HPS = "697403c78157020a1ae59d23f111aa58ced35b0a"
_LAION_V1 = "6d122adad522ab246644d9dc1c6d7a3810ee255f"

FILES: dict[str, HubFile] = {
    "hpsv2.0": HubFile("xswu/HPSv2", "HPS_v2_compressed.pt", _HPS, None, "Apache-2.0"),
    "hpsv2.1": HubFile("xswu/HPSv2", "HPS_v2.1_compressed.pt", _HPS, 1_972_490_005, "Apache-2.0"),
    "pickscore": HubFile(
        "yuvalkirstain/PickScore_v1",
        "model.safetensors",
        "a4e4367c6dfa7288a00c550414478f865b875800",
        3_940_000_000,
        "MIT (code; the model card names none)",
    ),
    "aesthetic": HubFile(
        "christophschuhmann/improved-aesthetic-predictor",
        "sac+logos+ava1-l14-linearMSE.pth",
        "6934dd81792f086e613a121dbce43082cb8be85e",
        3_714_759,
        "Apache-2.0",
        host="github.com",
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
    "aesthetic-v1-vit_l_14": HubFile(
        "LAION-AI/aesthetic-predictor",
        "sa_0_4_vit_l_14_linear.pth",
        _LAION_V1,
        4_071,
        "MIT",
        host="github.com",
        sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    ),
    "aesthetic-v1-vit_b_32": HubFile(
        "LAION-AI/aesthetic-predictor",
        "sa_0_4_vit_b_32_linear.pth",
        _LAION_V1,
        3_047,
        "MIT",
        host="github.com",
        sha256="c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
    ),
    "aesthetic-v1-vit_b_16": HubFile(
        "LAION-AI/aesthetic-predictor",
        "sa_0_4_vit_b_16_linear.pth",
        _LAION_V1,
        3_047,
        "MIT",
        host="github.com",
        sha256="8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0",
    ),
    "clip-vit-l-14": HubFile(
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        1_710_540_580,
        "MIT (code; the model card names none)",
    ),
    "clip-vit-b-32": HubFile(
        "openai/clip-vit-base-patch32",
        "pytorch_model.bin",
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        605_247_071,
        "MIT (code; the model card names none)",
    ),
    "clip-vit-b-16": HubFile(
        "openai/clip-vit-base-patch16",
        "pytorch_model.bin",
        "57c216476eefef5ab752ec549e440a49ae4ae5f3",
        None,
        "MIT (code; the model card names none)",
    ),
    "imagereward": HubFile(
        "zai-org/ImageReward",
        "ImageReward.pt",
        "5736be03b2652728fb87788c9797b0570450ab72",
        1_786_880_000,
        "Apache-2.0",
    ),
    "bert-base-uncased": HubFile(
        "google-bert/bert-base-uncased",
        "vocab.txt",
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        231_508,
        "Apache-2.0",
    ),
}


def fetch(key: str, *, revision: str | None = None, option: str = "checkpoint") -> str:
    """The local path of a published file; downloads it unless it is in the cache.

    Args:
        key: One of `FILES`.
        revision: Another commit, tag or branch (as `"main"`); default the one in the table.
        option: The argument that takes a local path instead, for the message.

    Raises:
        ValueError: Unknown key.
        CheckpointError: Not cached, and it cannot be downloaded; says which file to bring, how
            large it is, and by which command.
    """
    if key not in FILES:
        raise ValueError(f"key={key!r}: one of {', '.join(map(repr, FILES))}")
    file = FILES[key]
    try:
        if file.host == "github.com":
            return _from_github(file, revision or file.revision)
        return hf_hub_download(file.repository, file.filename, revision=revision or file.revision)
    except Exception as error:  # the hub's client raises many kinds
        raise CheckpointError(
            f"{key}: its weights are not in the cache and cannot be downloaded "
            f"({type(error).__name__}: {_line(error)}): "
            f"{way_out(key, revision=revision, option=option)}"
        ) from error


def locate(
    key: str,
    path: str | Path | None = None,
    *,
    revision: str | None = None,
    option: str = "checkpoint",
) -> str:
    """A local file where one is given, else `fetch(key)`.

    Args:
        key: One of `FILES`.
        path: A file on this machine, or `None`.
        revision: As for `fetch`; only without `path`.
        option: What the caller's argument for `path` is called, for the message.

    Raises:
        CheckpointError: The file does not exist, or cannot be fetched; says which to bring.
    """
    if path is None:
        return fetch(key, revision=revision, option=option)
    found = Path(path).expanduser()
    if not found.is_file():
        raise CheckpointError(
            f"{option}={str(path)!r} does not exist: {way_out(key, option=option)}"
        )
    return str(found)


def way_out(key: str, *, revision: str | None = None, option: str = "checkpoint") -> str:
    """The end of an error: how to get the file of `key` by hand, and the argument that takes it.

    Args:
        key: One of `FILES`.
        revision: As for `fetch`.
        option: The argument that takes a local path.
    """
    file = FILES[key]
    revision = revision or file.revision
    name = Path(file.filename).name
    if file.host == "github.com":
        command = f"curl -L -o '{name}' '{file.url(revision)}'"
        cache = f"copy it to {github_path(file, revision)} on this machine"
    else:
        command = f"hf download {file.repository} {file.filename} --revision {revision}"
        cache = f"copy the cache folder to {HF_HUB_CACHE} on this machine"
    return (
        f"where there is a network, run `{command}` (https://{file.host}/{file.repository}, "
        f"{file.size}), then pass {option}='.../{name}', or {cache}"
    )


def github_path(file: HubFile, revision: str) -> Path:
    """Where a file from GitHub is kept: below torch.hub's folder, by repository and revision."""
    return Path(torch.hub.get_dir(), "steer", *file.repository.split("/"), revision, file.filename)


def _from_github(file: HubFile, revision: str) -> str:
    path = github_path(file, revision)
    if path.is_file():
        return str(path)
    if HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.hub.download_url_to_file(file.url(revision), str(part), progress=False)
        if file.sha256 and revision == file.revision and _sha256(part) != file.sha256:
            raise OSError("the downloaded file is not the pinned one: its sha256 differs")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return str(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
