"""Where the benchmarks' prompt files are published, pinned, and how they come to this machine.

No prompt text is shipped. Every file is fetched at a fixed commit and held against a SHA-256. Where
the publisher's digest is known it stands in the table; where none is, the digest of the first
download is recorded beside the cache, and every later use is held against that.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from steer.core.errors import PromptsError
from steer.core.files.atomic import write_atomic
from steer.jobs.device import first_line


@dataclass(frozen=True)
class PromptFile:
    """One published file of prompts.

    Attributes:
        repository: `"<owner>/<name>"`: a dataset of the Hugging Face hub, or on GitHub.
        filename: Path inside it.
        revision: The commit.
        sha256: Of the file; None where it is recorded at the first download.
        licence: As the publisher states it.
        host: `"huggingface.co"` or `"github.com"`.
    """

    repository: str
    filename: str
    revision: str
    sha256: str | None
    licence: str
    host: str = "github.com"

    @property
    def url(self) -> str:
        """Where it can be downloaded by hand."""
        path = quote(self.filename)
        if self.host == "github.com":
            return f"https://raw.githubusercontent.com/{self.repository}/{self.revision}/{path}"
        return f"https://huggingface.co/datasets/{self.repository}/resolve/{self.revision}/{path}"


_HPD = "b9517430f34b1080d4f741118d2a440155a165cd"
_COMPBENCH = "1b7094991a57f3c22abdd4f6e8ba6c1a15517073"


def _hpd(style: str, sha256: str) -> PromptFile:
    file = f"benchmark/{style}.json"
    return PromptFile("zhwang/HPDv2", file, _HPD, sha256, "Apache-2.0", "huggingface.co")


def _compbench(category: str, sha256: str) -> PromptFile:
    file = f"examples/dataset/{category}_val.txt"
    return PromptFile("Karine-Huang/T2I-CompBench", file, _COMPBENCH, sha256, "MIT")


HPSV2 = {
    style: _hpd(style, sha256)
    for style, sha256 in {
        "anime": "6b38a479cc6f899866e9b7a8bf91f096b4afc6883b95275a61891327182b14ae",
        "concept-art": "530d057deafcb82c581e9d1be2ffcb98828fe99f0b54257414d2ab8a5cf2b83e",
        "paintings": "6570d39467e08b24b64e5b8a4177b0f61c525631121dc5a91fe2ab956eab4d5f",
        "photo": "92a3c9a0f743f66eb87bd112cdda830d6bdb4c073c86021d53b74001fcb18052",
    }.items()
}
PARTI = PromptFile(
    "google-research/parti",
    "PartiPrompts.tsv",
    "5a657978134374ce28973948331b319adef164bd",
    "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
    "Apache-2.0",
)
DRAWBENCH = PromptFile(
    "sayakpaul/drawbench",
    "DrawBench Prompts - Sheet1.csv",
    "ad794cba698c253ffdb6d18eff3fc87b004c1135",
    None,
    "not stated",
    "huggingface.co",
)
GENEVAL = PromptFile(
    "djghosh13/geneval",
    "prompts/evaluation_metadata.jsonl",
    "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
    "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    "MIT",
)
COMPBENCH = {
    category: _compbench(category, sha256)
    for category, sha256 in {
        "color": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
        "shape": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
        "texture": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
        "spatial": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
        "3d_spatial": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
        "numeracy": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
        "non_spatial": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
        "complex": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
    }.items()
}


def fetch(file: PromptFile) -> bytes:
    """The contents of a prompt file, from the cache or from its publisher, checked.

    Raises:
        PromptsError: It is neither cached nor can be downloaded, or is not the pinned file; says
            what to do.
    """
    try:
        path = _from_hub(file) if file.host == "huggingface.co" else _from_github(file)
    except Exception as error:  # the hub's client raises many kinds
        why = first_line(error)[:200]
        raise PromptsError(
            f"prompts: {file.filename!r} of {file.repository} is not in the cache and cannot be "
            f"downloaded ({type(error).__name__}: {why}): {_way_out(file)}"
        ) from error
    data = path.read_bytes()
    _check(file, data, path)
    return data


def cache_path(file: PromptFile) -> Path:
    """Where a file from GitHub is kept, and the recorded digest of one that has none."""
    from huggingface_hub.constants import HF_HOME

    where = Path(HF_HOME, "steer", "prompts", *file.repository.split("/"), file.revision)
    return where / file.filename


def _check(file: PromptFile, data: bytes, path: Path) -> None:
    """Raise PromptsError unless `data` has the pinned digest, or the one recorded at first."""
    digest = hashlib.sha256(data).hexdigest()
    wanted, note = file.sha256, cache_path(file)
    note = note.with_name(note.name + ".sha256")
    if wanted is None:
        if not note.is_file():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, digest.encode() + b"\n")
        wanted = note.read_text().strip()
    if digest != wanted:
        kind = "pinned" if file.sha256 else f"recorded at the first download, in {note},"
        raise PromptsError(
            f"prompts: {str(path)!r} is not the published file: its sha256 is {digest}, the "
            f"{kind} one {wanted}; delete it and run again"
        )


def _from_hub(file: PromptFile) -> Path:
    from huggingface_hub import hf_hub_download

    found = hf_hub_download(
        file.repository, file.filename, repo_type="dataset", revision=file.revision
    )
    return Path(found)


def _from_github(file: PromptFile) -> Path:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    path = cache_path(file)
    if path.is_file():
        return path
    if HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    with urllib.request.urlopen(file.url, timeout=60) as response:
        data = response.read()
    if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:
        raise OSError("what was downloaded is not the pinned file: its sha256 differs")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return path


def _way_out(file: PromptFile) -> str:
    if file.host == "github.com":
        path = cache_path(file)
        return (
            f"where there is a network, run `curl -L -o '{path.name}' '{file.url}'`, then copy it "
            f"to {path} on this machine"
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    command = f"hf download --repo-type dataset {file.repository} '{file.filename}'"
    return (
        f"where there is a network, run `{command} --revision {file.revision}`, then copy the "
        f"cache folder to {os.fspath(HF_HUB_CACHE)} on this machine"
    )
