"""Where the benchmarks' prompt files are published, pinned.

No prompt text is shipped. Every file is fetched at a fixed commit and held against a SHA-256. Where
the publisher's digest is known it stands in the table; where none is, the digest of the first
download is recorded beside the cache, and every later use is held against that.
"""

from __future__ import annotations

from pathlib import Path

from steer.core.errors import PromptsError
from steer.core.files import published
from steer.core.files.atomic import file_sha256, write_atomic
from steer.core.files.published import PublishedFile, check_sha256


_HPD = "b9517430f34b1080d4f741118d2a440155a165cd"
_COMPBENCH = "1b7094991a57f3c22abdd4f6e8ba6c1a15517073"


def _hpd(style: str, sha256: str) -> PublishedFile:
    file = f"benchmark/{style}.json"
    return PublishedFile(
        "zhwang/HPDv2", file, _HPD, None, "Apache-2.0", sha256=sha256, dataset=True
    )


def _compbench(category: str, sha256: str) -> PublishedFile:
    file = f"examples/dataset/{category}_val.txt"
    return PublishedFile(
        "Karine-Huang/T2I-CompBench", file, _COMPBENCH, None, "MIT", "github.com", sha256
    )


HPSV2 = {
    style: _hpd(style, sha256)
    for style, sha256 in {
        "anime": "6b38a479cc6f899866e9b7a8bf91f096b4afc6883b95275a61891327182b14ae",
        "concept-art": "530d057deafcb82c581e9d1be2ffcb98828fe99f0b54257414d2ab8a5cf2b83e",
        "paintings": "6570d39467e08b24b64e5b8a4177b0f61c525631121dc5a91fe2ab956eab4d5f",
        "photo": "92a3c9a0f743f66eb87bd112cdda830d6bdb4c073c86021d53b74001fcb18052",
    }.items()
}
PARTI = PublishedFile(
    "google-research/parti",
    "PartiPrompts.tsv",
    "5a657978134374ce28973948331b319adef164bd",
    None,
    "Apache-2.0",
    "github.com",
    "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
)
DRAWBENCH = PublishedFile(
    "sayakpaul/drawbench",
    "DrawBench Prompts - Sheet1.csv",
    "ad794cba698c253ffdb6d18eff3fc87b004c1135",
    None,
    "not stated",
    dataset=True,
)
GENEVAL = PublishedFile(
    "djghosh13/geneval",
    "prompts/evaluation_metadata.jsonl",
    "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
    None,
    "MIT",
    "github.com",
    "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
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


def fetch(file: PublishedFile) -> bytes:
    """The contents of a prompt file, from the cache or from its publisher, checked.

    Raises:
        PromptsError: It is neither cached nor can be downloaded, or is not the pinned file; says
            what to do.
    """
    path = published.fetch(file, "prompts", PromptsError)
    if file.sha256 is None:
        _hold_to_first(file, path)
    return path.read_bytes()


def _hold_to_first(file: PublishedFile, path: Path) -> None:
    """Raise PromptsError unless the file has the digest that was recorded at its first download."""
    note = file.cache_path()
    note = note.with_name(note.name + ".sha256")
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, file_sha256(path).encode() + b"\n")
    kind = f"the one recorded at the first download, in {note},"
    check_sha256(path, note.read_text().strip(), kind, "prompts", PromptsError)
