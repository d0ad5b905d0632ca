"""Published reward weights: one table of files, each with commit, size and licence.

Files are pinned to a commit; `revision="main"` would say that one is not. Assets of a release have
its tag.
"""

from __future__ import annotations

from pathlib import Path

from steer.core.errors import CheckpointError
from steer.core.files import published
from steer.core.files.published import PublishedFile


_HPS = "697403c78157020a1ae59d23f111aa58ced35b0a"
_LAION_V1 = "6d122adad522ab246644d9dc1c6d7a3810ee255f"

FILES: dict[str, PublishedFile] = {
    "hpsv2.0": PublishedFile("xswu/HPSv2", "HPS_v2_compressed.pt", _HPS, None, "Apache-2.0"),
    "hpsv2.1": PublishedFile(
        "xswu/HPSv2", "HPS_v2.1_compressed.pt", _HPS, 1_972_490_005, "Apache-2.0"
    ),
    "pickscore": PublishedFile(
        "yuvalkirstain/PickScore_v1",
        "model.safetensors",
        "a4e4367c6dfa7288a00c550414478f865b875800",
        3_940_000_000,
        "MIT (code; the model card names none)",
    ),
    "aesthetic": PublishedFile(
        "christophschuhmann/improved-aesthetic-predictor",
        "sac+logos+ava1-l14-linearMSE.pth",
        "6934dd81792f086e613a121dbce43082cb8be85e",
        3_714_759,
        "Apache-2.0",
        host="github.com",
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
    "aesthetic-v1-vit_l_14": PublishedFile(
        "LAION-AI/aesthetic-predictor",
        "sa_0_4_vit_l_14_linear.pth",
        _LAION_V1,
        4_071,
        "MIT",
        host="github.com",
        sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    ),
    "aesthetic-v1-vit_b_32": PublishedFile(
        "LAION-AI/aesthetic-predictor",
        "sa_0_4_vit_b_32_linear.pth",
        _LAION_V1,
        3_047,
        "MIT",
        host="github.com",
        sha256="c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
    ),
    "aesthetic-v1-vit_b_16": PublishedFile(
        "LAION-AI/aesthetic-predictor",
        "sa_0_4_vit_b_16_linear.pth",
        _LAION_V1,
        3_047,
        "MIT",
        host="github.com",
        sha256="8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0",
    ),
    "clip-vit-l-14": PublishedFile(
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        1_710_540_580,
        "MIT (code; the model card names none)",
    ),
    "clip-vit-b-32": PublishedFile(
        "openai/clip-vit-base-patch32",
        "pytorch_model.bin",
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        605_247_071,
        "MIT (code; the model card names none)",
    ),
    "clip-vit-b-16": PublishedFile(
        "openai/clip-vit-base-patch16",
        "pytorch_model.bin",
        "57c216476eefef5ab752ec549e440a49ae4ae5f3",
        None,
        "MIT (code; the model card names none)",
    ),
    "imagereward": PublishedFile(
        "zai-org/ImageReward",
        "ImageReward.pt",
        "5736be03b2652728fb87788c9797b0570450ab72",
        1_786_880_000,
        "Apache-2.0",
    ),
    **{
        name: PublishedFile(
            "hjbahng/cyclereward", filename, "v1.0.0", None, "MIT", "github.com", release=True
        )
        for name, filename in (
            ("cyclereward", "CycleReward-Combo.pth"),
            ("cyclereward:t2i", "CycleReward-T2I.pth"),
            ("cyclereward:i2t", "CycleReward-I2T.pth"),
        )
    },
    "aesthetic-v2.5": PublishedFile(
        "discus0434/aesthetic-predictor-v2-5",
        "models/aesthetic_predictor_v2_5.pth",
        "c0e15567fa61252cbff43d70c49a8bd27202ca9a",
        2_644_834,
        "AGPL-3.0",
        host="github.com",
        sha256="a6caf256b3dc434273c98dcb12f6bf17c5d4fc647d8df11f038386923dd06220",
    ),
    "siglip-so400m-384": PublishedFile(
        "google/siglip-so400m-patch14-384",
        "model.safetensors",
        "9fdffc58afc957d1a03a25b10dba0329ab15c2a3",
        3_511_950_624,
        "Apache-2.0",
    ),
    "hpsv3": PublishedFile(
        "MizzenAI/HPSv3",
        "HPSv3.safetensors",
        "4f81e3e09edd82fe3c5f636444c721b592a735ca",
        16_500_000_000,
        "Apache-2.0 (model card; the code is MIT)",
    ),
    "mps": PublishedFile(
        "RE-N-Y/mpsv1",
        "model.safetensors",
        "main",
        None,
        "not stated",
    ),
    "qwen2-vl-tokenizer": PublishedFile(
        "Qwen/Qwen2-VL-7B-Instruct",
        "tokenizer.json",
        "eed13092ef92e448dd6875b2a00151bd3f7db0ac",
        None,
        "Apache-2.0",
    ),
    "videoreward": PublishedFile(
        "KlingTeam/VideoReward",
        "checkpoint-11352/model.pth",
        "b8e421fe21aec3dde5f61fdd1dc44e1d603b9727",
        5_031_072_529,
        "MIT",
    ),
    "bert-base-uncased": PublishedFile(
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
            large it is, and by which command. Or it is not the published file.
    """
    if key not in FILES:
        raise ValueError(f"key={key!r}: one of {', '.join(map(repr, FILES))}")
    return str(published.fetch(FILES[key], key, CheckpointError, revision=revision, option=option))


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
            f"{option}={str(path)!r} does not exist: {FILES[key].by_hand(option=option)}"
        )
    return str(found)
