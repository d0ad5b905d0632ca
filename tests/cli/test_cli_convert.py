"""`steer convert`: bit-equal tensors, checked against the named model, and nothing half-written."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import steer
from steer.cli.app import app
from steer.core.errors import CheckpointError
from steer.jobs import convert as convert_module
from steer.jobs.convert import check_weights, convert


CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 56, "layers": 1, "width": 32, "head_width": 16, "patch_size": 28},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A small model of the published layout, in half precision as published."""
    torch.manual_seed(0)
    return {name: value.half() for name, value in open_clip.CLIP(**CONFIG).state_dict().items()}


@pytest.fixture
def file(weights: dict[str, torch.Tensor]) -> Path:
    torch.save({"state_dict": weights, "epoch": 3}, "IN.pt")
    return Path("IN.pt")


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, words)], catch_exceptions=False)


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and raw(a[k]) == raw(b[k]) for k in a
    )


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_round_trip(file: Path, weights: dict[str, torch.Tensor]) -> None:
    result = run("any", file, "OUT.safetensors")
    assert result.exit_code == 0, result.output
    assert same(load_file("OUT.safetensors"), weights)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest in result.stdout and f"{len(weights)} tensors" in result.stdout
    assert "float16" in result.stdout
    with safe_open("OUT.safetensors", "pt") as opened:
        assert opened.metadata() == {
            "format": "pt",
            "source": "IN.pt",
            "sha256": digest,
            "steer": steer.__version__,
            "reward": "any",
        }
    assert {p.name for p in Path().iterdir()} == {"IN.pt", "OUT.safetensors"}


def test_the_copy_scores_the_same(file: Path) -> None:
    made = convert(file, "OUT.safetensors", reward="hpsv2", model_config=CONFIG)
    assert made.dtypes == ("float16",) and made.size_bytes == made.path.stat().st_size
    images = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    scores = [
        steer.reward("hpsv2", checkpoint=path, device="cpu", model_config=CONFIG)(images, "a cat")
        for path in (file, made.path)
    ]
    # The same weights at other addresses: rounding may differ.
    torch.testing.assert_close(*scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["hpsv2", "hpsv2.0", "hpsv2.1"])
def test_the_published_architecture_is_what_is_checked(name: str) -> None:
    """Names and shapes of the real ViT-H/14, without its memory."""
    with torch.device("meta"):
        model = open_clip.create_model("ViT-H-14", pretrained=None, device="meta")
    state = model.state_dict()
    check_weights(state, name)
    assert sum(tensor.numel() for tensor in state.values()) == 986_109_441
    with pytest.raises(CheckpointError, match=r"1 missing \(logit_scale\)"):
        check_weights({k: v for k, v in state.items() if k != "logit_scale"}, name)
    wrong = state | {"visual.proj": state["visual.proj"][:5], "extra": state["logit_scale"]}
    with pytest.raises(CheckpointError, match=r"1 unexpected \(extra\); 1 of another shape"):
        check_weights(wrong, name)


def test_another_models_weights_are_refused(file: Path) -> None:
    line = one_line(run("hpsv2", file, "OUT.safetensors"))
    assert "does not fit the model" in line and "648 missing" in line
    assert not Path("OUT.safetensors").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_pickle_is_not_run(protocol: str) -> None:
    if protocol == "torch":
        torch.save({"state_dict": {"a": torch.ones(2)}, "x": Evil()}, "IN.pt")
    else:
        Path("IN.pt").write_bytes(pickle.dumps(Evil()))
    assert "more than tensors" in one_line(run("any", "IN.pt", "OUT.safetensors"))
    assert {p.name for p in Path().iterdir()} == {"IN.pt"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_refused(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "corrupt" in one_line(run("any", file, "OUT.safetensors"))
    save_file({"a": torch.ones(999)}, "IN.safetensors")
    data = Path("IN.safetensors").read_bytes()
    Path("IN.safetensors").write_bytes(data[: int(share * len(data))])
    assert "corrupt" in one_line(run("any", "IN.safetensors", "OUT.safetensors"))
    assert not Path("OUT.safetensors").exists()


def test_an_existing_file_is_kept_unless_forced(
    file: Path, weights: dict[str, torch.Tensor]
) -> None:
    Path("OUT.safetensors").write_text("mine")
    assert "--force" in one_line(run("any", file, "OUT.safetensors"))
    assert Path("OUT.safetensors").read_text() == "mine"
    assert run("any", file, "OUT.safetensors", "--force").exit_code == 0
    assert same(load_file("OUT.safetensors"), weights)
    assert "is the source itself" in one_line(
        run("any", "OUT.safetensors", "./OUT.safetensors", "--force")
    )
    assert same(load_file("OUT.safetensors"), weights)


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(state: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    Path("OUT.safetensors").write_text("old")
    monkeypatch.setattr(convert_module, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        convert(file, "OUT.safetensors", force=True)
    assert Path("OUT.safetensors").read_text() == "old"
    assert {p.name for p in Path().iterdir()} == {"IN.pt", "OUT.safetensors"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hpsv3", "IN.pt", "OUT.safetensors"], "reward='hpsv3': one of 'hpsv2'"),
        (["any", "IN.pt", "OUT.pt"], "ends in .safetensors"),
        (["any", "IN.pt", "no/OUT.safetensors"], "no folder 'no'"),
        (["any", "IN.pt", "folder.safetensors"], "is a folder"),
        (["any", "missing.pt", "OUT.safetensors"], "does not exist"),
        (["any", "list.pt", "OUT.safetensors"], "holds no tensors"),
        (["any", "mixed.pt", "OUT.safetensors"], "not a state dict"),
        (["any", "sparse.pt", "OUT.safetensors"], "safetensors holds dense ones only"),
    ],
)
def test_bad_input(file: Path, words: list[str], told: str) -> None:
    Path("folder.safetensors").mkdir()
    torch.save([torch.ones(2)], "list.pt")
    torch.save({"a": torch.ones(2), "b": 3}, "mixed.pt")
    torch.save({"a": torch.eye(3).to_sparse()}, "sparse.pt")
    before = set(Path().iterdir())
    assert told in one_line(run(*words))
    assert set(Path().iterdir()) == before


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=5
    ),
    st.integers(0, 2**31),
)
def test_any_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[Any, list[int]]], seed: int
) -> None:
    """Whatever the precision and the memory layout: slices, transposed, tied, empty."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(4, 6, generator=generator)
    state = {"base": base, "slice": base[1:3], "turned": base.T, "tied": base, "one": base[0, 0]}
    for k, (dtype, shape) in enumerate(kinds):
        state[f"x{k}"] = torch.randn(shape, generator=generator).mul(9).to(dtype)
    folder = tmp_path_factory.mktemp("any")
    torch.save(state, folder / "in.pt")
    made = convert(folder / "in.pt", folder / "out.safetensors")
    assert same(load_file(made.path), state)
    assert made.tensors == len(state)
