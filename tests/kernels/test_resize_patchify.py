from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from steer_kernels import resize_patchify as module
from steer_kernels.resize_patchify import resize_patchify
from steer_kernels.resize_tables import FIXED_POINT, INPUT_TILE, OUTPUT_TILE, axis, target
from torch import Tensor


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PLAIN: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}


class First:
    """A kernel of which only the first programs are launched: large pictures take too long."""

    def __init__(self, kernel: Any, programs: int) -> None:
        self.kernel, self.programs = kernel, programs

    def __getitem__(self, grid: tuple[int]) -> Any:
        return self.kernel[(min(self.programs, *grid),)]


def images(*shape: int, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth with edges and noise, [0, 1], with exactly black and white places."""
    generator = torch.Generator().manual_seed(sum(shape))
    coarse = torch.rand((shape[0], 3, 5, 4), generator=generator) * 2 - 0.5
    out = F.interpolate(coarse, shape[2:]) + 0.1 * torch.randn(shape, generator=generator)
    return out.clamp(0, 1).to(device, dtype)


def unpatch(patches: Tensor, size: int, patch: int) -> Tensor:
    side = size // patch
    tiles = patches.reshape(-1, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(-1, 3, size, size)


def both(x: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches and the images' gradient, by the kernel and by the reference in float64."""
    options = {"mean": MEAN, "std": STD} | options
    x = x.detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    got, want = resize_patchify(x, **options), resize_patchify(exact, **options)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(got)
    (gradient,) = torch.autograd.grad(got, x, weight)
    (wanted,) = torch.autograd.grad(want, exact, weight.double())
    return got.detach(), want.detach(), gradient, wanted


SHAPES = [
    pytest.param((1, 3, 91, 63), {"size": 28}, id="1x91x63"),
    pytest.param((3, 3, 37, 53), {"size": 28, "fit": "longest"}, id="3x37x53-longest"),
    pytest.param((1, 3, 12, 9), {"size": 32, "patch": 16}, id="upscaled"),
    pytest.param((1, 3, 60, 31), {"size": 32, "patch": 32, "cut": True}, id="patch32-cut"),
    pytest.param((1, 3, 40, 23), {"size": 24, "patch": 8, "crop": "floor"}, id="patch8-floor"),
    pytest.param((1, 3, 40, 50), {"size": 28, "clamp": False}, id="no-clamp"),
    pytest.param((1, 3, 40, 50), {"size": 28, "antialias": False}, id="no-antialias"),
    pytest.param((1, 3, 30, 16), {"size": 20, "patch": 20, "fit": "longest"}, id="patch20"),
    pytest.param((2, 3, 28, 28), {"size": 28}, id="no-resize"),
]


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_kernel_against_float64(
    device: torch.device, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    x = images(*shape, device=device) * 1.2 - 0.1
    got, want, gradient, wanted = both(x, **options)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=3e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("shape", [(224, 224), (511, 383), (1024, 1024)])
def test_large_pictures(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """Under the interpreter the first 18 tiles of outputs, and of gradients."""
    if device.type == "cpu":
        for name in ("resize_fwd_kernel", "resize_bwd_kernel"):
            monkeypatch.setattr(module, name, First(getattr(module, name), 18))
    x = images(1, 3, *shape, device=device)
    got, want, gradient, wanted = both(x, size=224, clamp=False)
    torch.testing.assert_close(got[:, :18].double(), want[:, :18], rtol=1e-5, atol=1e-5)
    place = (0, 0, slice(INPUT_TILE), slice(12 * INPUT_TILE - 1))  # a row of 7, 12 or 32 tiles
    torch.testing.assert_close(gradient[place].double(), wanted[place], rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_and_out(device: torch.device, dtype: torch.dtype) -> None:
    """Products stay in float32: only the result is rounded (the interpreter truncates it)."""
    x = images(1, 3, 45, 64, device=device, dtype=dtype) * 1.9 - 0.95
    got, want, gradient, wanted = both(x, size=28, value_range=(-1, 1))
    assert got.dtype == gradient.dtype == dtype
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=ulp, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=ulp, atol=1e-5)
    raised = resize_patchify(
        x, size=28, mean=MEAN, std=STD, value_range=(-1, 1), dtype=torch.float32
    )
    torch.testing.assert_close(raised.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.sample
@pytest.mark.parametrize("shape", [(2, 3, 51, 38), (1, 3, 12, 9), (1, 3, 100, 90)])
@pytest.mark.parametrize("fit", ["shortest", "longest"])
def test_kernel_is_pillow_to_the_bit(
    device: torch.device, shape: tuple[int, ...], fit: str
) -> None:
    x = images(*shape, device=device)
    patches = resize_patchify(x, size=28, fit=fit, match="pil", **PLAIN)  # type: ignore[arg-type]
    levels = unpatch(patches, 28, 14) * 255
    wanted = torch.from_numpy(by_pillow(x.cpu(), 28, fit)).to(device)
    assert torch.equal(levels.round(), wanted.float())
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    _, _, gradient, want = both(x, size=28, fit=fit, match="pil")
    torch.testing.assert_close(gradient.double(), want, rtol=1e-5, atol=3e-5)


def test_the_backward_is_the_adjoint(device: torch.device) -> None:
    """<R x, y> = <x, R' y>, for images and patches that have nothing to do with each other."""
    options = (28, 14, "shortest", [0.0] * 3, [1.0] * 3, 0.0, 1.0, True, "torch", False)
    x, y = torch.randn(2, 3, 41, 67, device=device), torch.randn(2, 4, 588, device=device)
    out, kept = module._op(x, *options, False, "round", torch.float32, True)
    size, patch, fit, _, std, low, high, antialias, match, _ = options
    back = module._backward_op(
        y, kept, x, size, patch, fit, std, low, high, antialias, match, False, "round"
    )
    left, right = (out.double() * y).sum(), (x.double() * back).sum()
    assert abs(left - right) < 1e-5 * out.double().norm() * y.double().norm()


def test_strides_do_not_matter(device: torch.device) -> None:
    x = images(2, 3, 40, 52, device=device)
    want = resize_patchify(x, size=28, mean=MEAN, std=STD)
    wide = images(2, 3, 40, 104, device=device)
    wide[..., ::2] = x
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (x.to(memory_format=torch.channels_last), wide[..., ::2], turned):
        assert not other.is_contiguous()
        assert torch.equal(resize_patchify(other, size=28, mean=MEAN, std=STD), want)
    gray = (x[:, :1] * 0.9 + 0.05).expand(-1, 3, -1, -1)
    got, exact, gradient, wanted = both(gray, size=28)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=3e-5)


def test_not_a_number_stays_one(device: torch.device) -> None:
    x = images(2, 3, 40, 40, device=device)
    x[1, 2, 5, 7] = torch.nan
    patches = resize_patchify(x, size=28, mean=MEAN, std=STD)
    assert patches[0].isfinite().all() and patches[1].isnan().any()


def test_custom_ops(device: torch.device) -> None:
    options = (28, 14, "shortest", [0.0] * 3, [1.0] * 3, 0.0, 1.0, True, "torch", True)
    x = images(1, 3, 20, 31, device=device).requires_grad_()
    torch.library.opcheck(module._op, (x, *options, False, "round", torch.float32, True))
    kept = torch.ones((1, 4, 588), dtype=torch.uint8, device=device)
    arguments = (28, 14, "shortest", [1.0] * 3, 0.0, 1.0, True, "torch", False, "round")
    grad = torch.randn(1, 4, 588, device=device)
    torch.library.opcheck(module._backward_op, (grad, kept, x.detach(), *arguments))


@pytest.mark.parametrize("fit", ["shortest", "longest"])
@pytest.mark.parametrize("shape", [(511, 383), (224, 300), (97, 224), (224, 224), (40, 1000)])
@pytest.mark.parametrize("crop", ["round", "floor"])
def test_reference_is_the_rewards_preprocessing(
    fit: Any, shape: tuple[int, int], crop: Any
) -> None:
    from steer.rewards.clip.preprocess import Preprocess

    x = images(2, 3, *shape).double()
    pixels = Preprocess(resize=fit, crop=crop)(x)
    want = F.unfold(pixels, 14, stride=14).transpose(1, 2)
    got = resize_patchify(x, size=224, fit=fit, crop=crop, mean=MEAN, std=STD)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def by_pillow(x: Tensor, size: int, fit: str) -> np.ndarray:
    """`(B, 3, size, size)` uint8: Pillow's resize, then centre crop or black padding."""
    out = np.zeros((len(x), 3, size, size), np.uint8)
    for to, image in zip(out, (x * 255).round().byte().permute(0, 2, 3, 1).numpy(), strict=True):
        rows, columns = target(*image.shape[:2], size, fit)
        resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
        down, right = ((size - extent) // 2 for extent in (rows, columns))
        pixels = np.asarray(resized)
        top, left = (round(max(extent - size, 0) / 2) for extent in (rows, columns))
        pixels = pixels[top : top + size, left : left + size].transpose(2, 0, 1)
        down, right = max(down, 0), max(right, 0)
        to[:, down : down + pixels.shape[1], right : right + pixels.shape[2]] = pixels
    return out


@pytest.mark.parametrize("fit", ["shortest", "longest"])
@pytest.mark.parametrize("shape", [(511, 383), (64, 31), (97, 224), (1024, 700), (13, 9)])
def test_reference_is_pillow_to_the_bit(shape: tuple[int, int], fit: Any) -> None:
    x = images(2, 3, *shape)
    patches = resize_patchify(x, size=224, fit=fit, match="pil", **PLAIN)
    levels = unpatch(patches, 224, 14) * 255
    assert torch.equal(levels.round(), torch.from_numpy(by_pillow(x, 224, fit)).float())


def test_pillow_gradient_goes_straight_through() -> None:
    """Close to the smooth resize's own gradient where nothing is clamped."""
    x = (images(1, 3, 60, 47) * 0.5 + 0.25).requires_grad_()
    weight = torch.randn(1, 4, 588, generator=torch.Generator().manual_seed(0))
    gradients = [
        torch.autograd.grad(resize_patchify(x, size=28, match=match, **PLAIN), x, weight)[0]
        for match in ("pil", "torch")
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    source=st.integers(1, 600),
    wanted=st.integers(1, 300),
    size=st.integers(1, 300),
    antialias=st.booleans(),
    crop=st.sampled_from(["round", "floor"]),
)
def test_tables(source: int, wanted: int, size: int, antialias: bool, crop: str) -> None:
    table = axis(source, wanted, size, crop, antialias, "torch", "cpu")
    matrix = table.matrix()
    first, last = table.inside
    x = torch.randn((1, 1, source, 2), dtype=torch.double)
    shape = (wanted, 2)
    want = F.interpolate(x, shape, mode="bicubic", antialias=antialias, align_corners=False)
    begin = max(round((wanted - size) / 2) if crop == "round" else (wanted - size) // 2, 0)
    want = want[0, 0, begin : begin + size] if wanted > size else want[0, 0]
    torch.testing.assert_close((matrix @ x[0, 0])[first:last], want, rtol=1e-5, atol=1e-5)
    assert not matrix[:first].any() and not matrix[last:].any()
    assert (table.start.diff() >= 0).all()
    reach = table.start[OUTPUT_TILE - 1 :] - table.start[: max(size - OUTPUT_TILE + 1, 0)]
    assert size < OUTPUT_TILE or int(reach.max()) + table.taps <= table.span
    for output, pixel in matrix.nonzero().tolist():
        tile = pixel // INPUT_TILE
        assert table.first[tile] <= output < table.end[tile]


def test_fixed_point_weights_are_whole_and_sum_to_one() -> None:
    matrix = axis(511, 224, 224, "round", True, "pil", "cpu").matrix()
    assert torch.equal(matrix, matrix.round())
    assert (matrix.sum(1) / FIXED_POINT - 1).abs().max() < 1e-5


def test_no_images() -> None:
    x = torch.empty(0, 3, 30, 40, requires_grad=True)
    patches = resize_patchify(x, mean=MEAN, std=STD, dtype=torch.bfloat16)
    assert patches.shape == (0, 256, 588) and patches.dtype == torch.bfloat16
    patches.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, r"images.shape=\(3, 8, 8\)"),
        ({"images": torch.zeros(1, 4, 8, 8)}, r"images.shape=\(1, 4, 8, 8\)"),
        ({"images": torch.zeros(1, 3, 0, 8)}, r"images.shape=\(1, 3, 0, 8\)"),
        ({"images": torch.zeros((1, 3, 30000, 30000), device="meta")}, r"more than 2\*\*31"),
        ({"size": 225}, "size=225, patch=14"),
        ({"patch": 0}, "size=224, patch=0"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\)"),
        ({"std": (1, 0, 1)}, r"std=\(1, 0, 1\)"),
        ({"value_range": (1, -1)}, r"value_range=\(1.0, -1.0\)"),
        ({"fit": "squash"}, "fit='squash'"),
        ({"match": "opencv"}, "match='opencv'"),
        ({"crop": "ceil"}, "crop='ceil'"),
        ({"match": "pil", "antialias": False}, "antialias=False with match='pil'"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    options = {"images": torch.zeros(1, 3, 8, 8), "mean": MEAN, "std": STD} | change
    with pytest.raises(ValueError, match=message):
        resize_patchify(options.pop("images"), **options)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"images.dtype=torch.uint8"):
        resize_patchify(torch.zeros((1, 3, 8, 8), dtype=torch.uint8), mean=MEAN, std=STD)
    with pytest.raises(TypeError, match=r"dtype=torch.int8"):
        resize_patchify(torch.zeros((1, 3, 8, 8)), mean=MEAN, std=STD, dtype=torch.int8)
