"""Names, folders and repositories: which files are meant, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file

from steer.core.errors import CheckpointError
from steer.driver.denoisers.checkpoints import KNOWN, Checkpoint
from steer.driver.denoisers.checkpoints.known import is_bundled, is_repository, named
from steer.driver.denoisers.checkpoints.origin import seems_made_for
from steer.driver.denoisers.checkpoints.source import choose, find


UNET = "unet/diffusion_pytorch_model.safetensors"
ROOT = "diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    ("names", "component", "given", "chosen"),
    [
        (["model_index.json", UNET, "unet/config.json", "vae/" + ROOT], "unet", {}, [UNET]),
        ([ROOT, "config.json"], "unet", {}, [ROOT]),
        ([UNET, ROOT], "unet", {}, [UNET]),
        ([UNET, ROOT], "unet", {"subfolder": ""}, [ROOT]),
        (["unet_win/" + ROOT, "unet_lose/" + ROOT], "unet", {"subfolder": "unet_lose"},
         ["unet_lose/" + ROOT]),
        (["transformer/" + ROOT], "transformer", {}, ["transformer/" + ROOT]),
        (["unet/diffusion_pytorch_model.fp16.safetensors"], "unet", {},
         ["unet/diffusion_pytorch_model.fp16.safetensors"]),
        ([UNET, "unet/diffusion_pytorch_model.fp16.safetensors"], "unet", {}, [UNET]),
        (["unet/diffusion_pytorch_model.safetensors.index.json", "unet/a-1.safetensors",
          "unet/a-2.safetensors"], "unet", {},
         ["unet/diffusion_pytorch_model.safetensors.index.json"]),
        ([LORA], "unet", {}, [LORA]),
        (["some_lora.safetensors", "README.md"], "unet", {}, ["some_lora.safetensors"]),
        (["a.safetensors", "b.safetensors"], "unet", {"file": "b.safetensors"}, ["b.safetensors"]),
        ([ROOT, LORA], "unet", {"kind": "lora"}, [LORA]),
        (["unet/diffusion_pytorch_model.bin", UNET], "unet", {}, [UNET]),
    ],
)  # fmt: skip
def test_the_files_that_are_meant(
    names: list[str], component: str, given: dict[str, Any], chosen: list[str]
) -> None:
    found = choose(names, Checkpoint("a/b", **given), component, "a/b")
    assert [name for name in found if not name.endswith("config.json")] == chosen
    configs = [name for name in found if name.endswith("config.json")]
    assert all(Path(name).parent == Path(chosen[0]).parent for name in configs)


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (
            ["unet/diffusion_pytorch_model.bin"],
            {},
            "steer convert any unet/diffusion_pytorch_model.bin",
        ),
        (["x.pt", "b.safetensors"], {"file": "x.pt"}, "is a pickle"),
        (["a.safetensors", "b.safetensors"], {}, "several weights.*file='...'"),
        (["vae/" + ROOT, "README.md"], {}, "no safetensors in 'unet' or at its top"),
        ([UNET], {"subfolder": "other"}, "no safetensors in 'other'"),
        ([], {}, "it has no files"),
    ],
)
def test_folders_without_weights_are_refused(
    names: list[str], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        choose(names, Checkpoint("a/b", **given), "unet", "a/b")


def test_short_names_are_whole_and_of_known_form() -> None:
    assert len({known for known in KNOWN.values()}) == len(KNOWN)
    for name, known in KNOWN.items():
        assert named(name) == (name, known) == named(known)
        assert re.fullmatch(r"[a-z0-9-]+-(sd15|sdxl|sd3|shapes)(-[a-z]+)?", name)
        if is_bundled(known):
            assert known.base in ("shapes", "shapes-turbo") and Path(known.source).is_dir()
        else:
            assert is_repository(str(known.source)) and is_repository(known.base)
        assert known.kind in ("denoiser", "lora") and known.method
        assert (known.kind == "lora") == (known.file is not None)
        assert re.fullmatch(r"\d{4}\.\d{5}", known.paper)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("dpo-sd1.5", "did you mean 'dpo-sd15'"),
        ("kto", "there are poly-dpo-shapes"),
        ("./nowhere", "no such file or folder"),
        ("nowhere.safetensors", "no such file or folder"),
        ("org/weights.safetensors", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        (3.5, "tuned=3.5: give a name"),
    ],
)
def test_names_that_lead_nowhere(source: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        named(source)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "unet"}, "kind='unet'"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"weight": "1"}, "weight='1'"),
        ({"source": " "}, "source=''"),
    ],
)
def test_checkpoints_that_are_none(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Checkpoint(**{"source": "a/b", **given})


@given(st.text(max_size=12))
def test_any_text_is_a_name_or_an_error_that_quotes_it(text: str) -> None:
    try:
        named(text)
    except ValueError as error:
        assert repr(text) in str(error) or "source=''" in str(error)


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2, 3) for name in names}


def test_local_files_and_folders(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(tensors("conv_in.weight"), file)
    assert find(Checkpoint(file), "unet", "x").files == (file,)
    (tmp_path / "config.json").write_text("{}")
    assert find(Checkpoint(file), "unet", "x").config == tmp_path / "config.json"
    assert find(Checkpoint(tmp_path), "unet", "x").files == (file,)
    save_file(tensors("unet.down.lora_A.weight"), file)
    assert find(Checkpoint(file), "unet", "x").kind == "lora"


def test_sharded_weights_are_all_found(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    shards = {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    for name, shard in shards.items():
        save_file(tensors(name), folder / shard)
    found = find(Checkpoint(tmp_path), "unet", "x")
    assert [file.name for file in found.files] == sorted(shards.values())
    (folder / "m-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard 'm-2.safetensors' is missing"):
        find(Checkpoint(tmp_path), "unet", "x")


def test_files_that_are_not_read(tmp_path: Path) -> None:
    pickle = tmp_path / "weights.pt"
    torch.save(tensors("a"), pickle)
    with pytest.raises(CheckpointError, match=r"is a pickle.*steer convert any \S+weights.pt"):
        find(Checkpoint(pickle), "unet", "x")
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"not a .safetensors file"):
        find(Checkpoint(tmp_path / "weights.gguf"), "unet", "x")
    broken = tmp_path / "broken.safetensors"
    save_file(tensors("a"), broken)
    broken.write_bytes(broken.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        find(Checkpoint(broken), "unet", "x")
    whole = tmp_path / "whole.safetensors"
    save_file(tensors("model.diffusion_model.input_blocks.0.0.weight"), whole)
    with pytest.raises(CheckpointError, match="from_single_file"):
        find(Checkpoint(whole), "unet", "x")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        find(Checkpoint(tmp_path / "gone"), "unet", "x")


def test_the_kind_that_is_claimed_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(tensors("conv_in.weight"), file)
    with pytest.raises(CheckpointError, match="those of a denoiser; leave kind out"):
        find(Checkpoint(file, "lora"), "unet", "x")
    with pytest.raises(CheckpointError, match=r"blend=steer.RLG\(1.5\)"):
        find(Checkpoint(file, weight=1.5), "unet", "x")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("dpo-sd15", r"hf download mhdang/dpo-sd1.5-text2image-v1 --include 'unet/\*' --local-dir"),
        ("dpo-sdxl-lora", r"hf download radames/sdxl-DPO-LoRA pytorch_lora_weights.safetensors"),
        ("mapo-sdxl", r"hf download mapo-t2i/mapo-beta --local-dir"),
    ],
)
def test_without_a_network_the_command_to_run_is_named(name: str, command: str) -> None:
    with pytest.raises(CheckpointError, match=command):
        find(KNOWN[name], "unet", name)


def test_a_cached_repository_is_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unet").mkdir()
    save_file(tensors("conv_in.weight"), tmp_path / UNET)

    def snapshot(repository: str, **given: Any) -> str:
        assert repository == "a/b" and given == {"revision": "r", "local_files_only": True}
        return str(tmp_path)

    monkeypatch.setattr("steer.driver.denoisers.checkpoints.source.snapshot_download", snapshot)
    monkeypatch.setattr("steer.driver.denoisers.checkpoints.source.HF_HUB_OFFLINE", True)
    found = find(Checkpoint("a/b", revision="r"), "unet", "a/b")
    assert found.files == (tmp_path / UNET,)


def test_only_the_denoiser_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["model_index.json", "unet/config.json", "vae/" + ROOT]
    listed += ["unet/diffusion_pytorch_model.safetensors.index.json", "unet/x-1.safetensors"]
    wanted: list[str] = []

    def snapshot(repository: str, **given: Any) -> str:
        wanted.extend(given["allow_patterns"])
        return str(tmp_path)

    class Api:
        def list_repo_files(self, repository: str, revision: str | None) -> list[str]:
            return listed

    monkeypatch.setattr("steer.driver.denoisers.checkpoints.source.HfApi", Api)
    monkeypatch.setattr("steer.driver.denoisers.checkpoints.source.snapshot_download", snapshot)
    monkeypatch.setattr("steer.driver.denoisers.checkpoints.source.HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match="it has no files"):
        find(Checkpoint("a/b"), "unet", "a/b")  # nothing was put into the folder
    assert wanted == [
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-*.safetensors",
    ]


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({"down_blocks.0.attentions.0.attn2.to_k.weight": (320, 768)}, "Stable Diffusion 1.x"),
        ({"unet.mid_block.attn2.to_k.lora_A.weight": (8, 2048)}, "Stable Diffusion XL"),
        ({"x.attn2.to_k.lora_B.weight": (768, 8), "x.attn2.to_k.lora_A.weight": (8, 1024)},
         "Stable Diffusion 2.x"),
        ({"x.attn2.to_k.weight": (8, 16)}, "a UNet with text features of width 16"),
        ({"single_transformer_blocks.0.attn.to_k.weight": (3072, 3072)}, "Flux"),
        ({"transformer_blocks.0.attn.add_k_proj.weight": (1536, 1536)}, "Stable Diffusion 3"),
        ({"adaln_single.linear.weight": (2, 2), "x.attn2.to_k.weight": (8, 768)}, "PixArt"),
        ({"layers.0.weight": (3, 3)}, None),
    ],
)  # fmt: skip
def test_what_tensors_seem_made_for(shapes: dict[str, Any], family: str | None) -> None:
    assert seems_made_for(shapes) == family
