from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from steer_kernels import linear_gelu as module
from steer_kernels.linear_gelu import SWITCH, Kind, fused, gelu, gelu_ref, linear_gelu
from torch import Tensor


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ULP = {torch.float32: 2**-19, torch.float16: 2**-10, torch.bfloat16: 2**-7}
KINDS: list[Kind] = ["erf", "quick"]


def exact(x: Tensor, kind: Kind) -> Tensor:
    if kind == "quick":
        return x / (1 + torch.exp(-1.702 * x))
    return x * torch.special.ndtr(x)


def layer(
    rows: tuple[int, ...], k: int, n: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(*rows, k, device=device).to(dtype)
    weight = (torch.randn(n, k, device=device) / math.sqrt(k)).to(dtype)
    return x, weight, torch.randn(n, device=device).to(dtype)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every launch of the fused kernel, by its number of rows."""
    launches: list[int] = []
    launch = module.linear_gelu_launch

    def count(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        launches.append(len(x))
        return launch(x, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "linear_gelu_launch", count)
    return launches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "k", "n", "dtype"),
    [
        *(((3, 11), 40, 72, dtype) for dtype in DTYPES),
        ((1,), 1280, 32, torch.float16),
        ((257,), 16, 8, torch.float16),
        ((3,), 768, 48, torch.float32),
    ],
    ids=str,
)
def test_fused_output_and_gradient_match_float64(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    rows: tuple[int, ...],
    k: int,
    n: int,
    dtype: torch.dtype,
    kind: Kind,
) -> None:
    monkeypatch.setenv(SWITCH, "fused")
    launches = counted(monkeypatch)
    torch.manual_seed(0)
    x, weight, bias = layer(rows, k, n, dtype, device)
    plain = linear_gelu(x, weight, bias, kind)
    out = linear_gelu(x.requires_grad_(), weight, bias, kind)
    assert launches == [math.prod(rows)] * 2
    assert torch.equal(out.detach(), plain) and out.shape == (*rows, n) and out.dtype == dtype

    leaf = x.detach().double().requires_grad_()
    expected = exact(leaf @ weight.double().T + bias.double(), kind)
    error = (out.double() - expected).abs().detach()
    bound = ULP[dtype] * (1 / 16 + expected.abs()).detach()
    if device.type == "cpu":  # numpy's float32 sums, in an order that is the CPU's: the usual bound
        bound += k * 2**-24 * (leaf.detach().abs() @ weight.double().abs().T + bias.double().abs())
    assert (error <= bound).all(), (error / bound).max()

    grad = torch.randn(out.shape, device=device).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert x.grad is not None and leaf.grad is not None
    error = (x.grad.double() - leaf.grad).abs()
    assert error.max() <= 2 * ULP[dtype] * leaf.grad.abs().max(), error.max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_alone(device: torch.device, dtype: torch.dtype, kind: Kind) -> None:
    x = torch.linspace(-9, 9, 1500, device=device).to(dtype).reshape(2, 750).T.requires_grad_()
    leaf = x.detach().double().requires_grad_()
    out, expected = gelu(x, kind), exact(leaf, kind)
    assert out.shape == x.shape and out.dtype == dtype
    out.sum().backward()
    expected.sum().backward()
    assert x.grad is not None and leaf.grad is not None
    for ours, truth in ((out.detach(), expected.detach()), (x.grad, leaf.grad)):
        error = (ours.double() - truth).abs()
        assert (error <= ULP[dtype] * (truth.abs() + 1 / 2)).all(), error.max()


@pytest.mark.parametrize("switch", ["fused", "separate"])
def test_widths_that_rows_of_16_bytes_cannot_hold(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    launches = counted(monkeypatch)
    torch.manual_seed(1)
    x, weight, bias = layer((3,), 13, 7, torch.float32, device)
    expected = exact(x.double() @ weight.double().T + bias.double(), "quick")
    assert torch.allclose(linear_gelu(x, weight, bias, "quick").double(), expected, atol=1e-5)
    assert not launches


def test_any_strides(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "fused")
    launches = counted(monkeypatch)
    torch.manual_seed(2)
    base = torch.randn(4, 5, 64, device=device)
    weight, bias = torch.randn(32, 16, device=device).T, torch.randn(32, device=device)[::2]
    for x in (base[:, 0, :32], base[..., ::2], base[..., 1:33], base.transpose(0, 2)[:32].mT.mT):
        x = x if x.shape[-1] == 32 else x.transpose(0, -1)
        expected = exact(x.double() @ weight.double().T + bias.double(), "erf")
        error = (linear_gelu(x, weight, bias).double() - expected).abs()
        assert error.max() < 1e-4
    assert len(launches) == 4


def test_zero_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "fused")
    x, weight, bias = layer((0, 257), 16, 8, torch.float32, device)
    out = linear_gelu(x.requires_grad_(), weight, bias, "quick")
    assert out.shape == (0, 257, 8)
    out.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_opcheck(device: torch.device) -> None:
    torch.manual_seed(3)
    x, weight, bias = layer((2,), 8, 8, torch.float32, device)
    ops = torch.ops.steer
    wanted = x.clone().requires_grad_()
    torch.library.opcheck(ops.linear_gelu.default, (x, weight, bias, True, False))
    torch.library.opcheck(ops.linear_gelu.default, (wanted, weight, bias, False, True))
    torch.library.opcheck(ops.gelu.default, (wanted, True))
    torch.library.opcheck(ops.gelu_backward.default, (x, bias.expand(2, -1), True))


def test_without_the_sum_there_is_no_gradient(device: torch.device) -> None:
    x, weight, bias = layer((2,), 8, 8, torch.float32, device)
    out, kept = torch.ops.steer.linear_gelu(x.requires_grad_(), weight, bias, True, False)
    assert kept.shape == (0, 8)
    with pytest.raises(RuntimeError, match="keep=False"):
        out.sum().backward()


def test_unmeasured_architectures_run_the_separate_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    assert not fused("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert not fused("cuda:0")
    monkeypatch.setattr(module, "FUSED", {90: True})
    assert fused("cuda:0")
    monkeypatch.setenv(SWITCH, "separate")
    assert not fused("cuda:0")
    monkeypatch.setenv(SWITCH, "on")
    with pytest.raises(ValueError, match="STEER_LINEAR_GELU='on': set it to 'fused' or 'separate'"):
        fused("cuda:0")


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference(kind: Kind) -> None:
    torch.manual_seed(4)
    x, weight, bias = (t.double() for t in layer((2, 3), 5, 4, torch.float32, "cpu"))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: linear_gelu(x, weight, bias, kind), x)
    pre = F.linear(x, weight, bias)
    assert torch.allclose(gelu_ref(pre, kind), exact(pre, kind), atol=1e-12)


def test_bad_input() -> None:
    x, weight, bias = layer((2,), 8, 4, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"kind='tanh': pass one of 'erf', 'quick'"):
        linear_gelu(x, weight, bias, "tanh")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"weight\.shape=\(8, 4\): pass \(\.\.\., K\), \(N, K\)"):
        linear_gelu(x, weight.T, bias)
    with pytest.raises(ValueError, match=r"bias\.shape=\(8,\): pass \(4,\)"):
        linear_gelu(x, weight, torch.ones(8))
    with pytest.raises(TypeError, match=r"weight\.dtype=torch\.float16: pass x's, torch\.float32"):
        linear_gelu(x, weight.half(), bias)
    with pytest.raises(TypeError, match=r"x\.dtype=torch\.int64"):
        gelu(x.long())
    with pytest.raises(ValueError, match=r"weight\.requires_grad=True"):
        linear_gelu(x, weight.clone().requires_grad_(), bias)
    with pytest.raises(ValueError, match=r"weight on meta.*move them to one device"):
        linear_gelu(x, weight.to("meta"), bias)
