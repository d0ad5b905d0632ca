from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from steer_kernels.norm import MAX_WIDTH, norm, norm_ref, parts
from torch import Tensor


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One unit in the last place of each type, since the interpreter truncates to bfloat16.
ULP = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}
EPS = 1e-5
SHAPES = [(1, 768), (3, 1280), (2, 2, 1664), (3, 17)]
CASES = [*((shape, dtype) for shape in SHAPES for dtype in DTYPES), ((1, 257, 45), torch.float16)]


def exact(summed: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = summed - summed.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


def weights(width: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor]:
    weight = 1 + 0.2 * torch.randn(width, device=device)
    return weight.to(dtype), torch.randn(width, device=device).to(dtype)


def assert_near(actual: Tensor, expected: Tensor, ulp: float) -> None:
    error = (actual.double() - expected).abs()
    assert (error <= ulp * (expected.abs() + expected.abs().amax(-1, keepdim=True) / 8)).all(), (
        error.max()
    )


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_sum_norm_and_gradients_match_float64(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = (2 * torch.randn(shape, device=device) + 1).to(dtype).requires_grad_()
    residual = torch.randn(shape, device=device).to(dtype).requires_grad_()
    weight, bias = weights(shape[-1], dtype, device)
    out, summed = norm(x, weight, bias, EPS, residual)
    assert out.dtype == summed.dtype == dtype and out.shape == summed.shape == x.shape
    assert_near(summed, x.detach().double() + residual.detach().double(), ULP[dtype])

    leaf = summed.detach().double().requires_grad_()
    expected = exact(leaf, weight.double(), bias.double())
    assert_near(out, expected.detach(), ULP[dtype])

    grads = torch.randn(2, *shape, device=device).to(dtype)
    torch.autograd.backward([out, summed], [*grads])
    torch.autograd.backward([expected, leaf], [*grads.double()])
    assert leaf.grad is not None and x.grad is not None and residual.grad is not None
    assert_near(x.grad, leaf.grad, 2 * ULP[dtype])
    assert torch.equal(x.grad, residual.grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_residual(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 45, device=device).to(dtype).requires_grad_()
    weight, bias = weights(45, dtype, device)
    out, summed = norm(x, weight, bias, EPS)
    assert summed is x
    leaf = x.detach().double().requires_grad_()
    expected = exact(leaf, weight.double(), bias.double())
    assert_near(out, expected.detach(), ULP[dtype])
    out.sum().backward()
    expected.sum().backward()
    assert x.grad is not None and leaf.grad is not None
    scale = 4 * ULP[dtype] * weight.double().abs().max()  # sums of ones cancel in part
    assert (x.grad.double() - leaf.grad).abs().max() <= scale


def test_either_output_may_go_unused(device: torch.device) -> None:
    torch.manual_seed(2)
    x, residual = torch.randn(2, 2, 24, device=device).unbind()
    x.requires_grad_()
    weight, bias = weights(24, torch.float32, device)
    out, summed = norm(x, weight, bias, EPS, residual)
    (alone,) = torch.autograd.grad(summed.sum(), x, retain_graph=True)
    assert torch.equal(alone, torch.ones_like(x))
    (through,) = torch.autograd.grad(out.square().sum(), x)
    leaf = x.detach().double().requires_grad_()
    exact(leaf + residual.double(), weight.double(), bias.double()).square().sum().backward()
    assert leaf.grad is not None
    assert_near(through, leaf.grad, 2**-18)


def test_a_float32_stream_stays_float32(device: torch.device) -> None:
    torch.manual_seed(3)
    x = torch.randn(3, 40, device=device).half().requires_grad_()
    residual = torch.randn(3, 40, device=device).requires_grad_()
    weight, bias = weights(40, torch.float16, device)
    out, summed = norm(x, weight, bias, EPS, residual)
    assert (out.dtype, summed.dtype) == (torch.float16, torch.float32)
    assert torch.equal(summed, x + residual)
    assert_near(out.detach(), exact(summed.double(), weight.double(), bias.double()), 2**-10)
    (out.sum() + summed.sum()).backward()
    assert x.grad is not None and residual.grad is not None
    assert (x.grad.dtype, residual.grad.dtype) == (torch.float16, torch.float32)
    assert torch.equal(x.grad, residual.grad.half())


def test_a_large_mean_does_not_cancel(device: torch.device) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 96, device=device) + 1000
    weight, bias = weights(96, torch.float32, device)
    out, _ = norm(x, weight, bias, EPS)
    assert_near(out, exact(x.double(), weight.double(), bias.double()), 2**-11)


def test_any_strides(device: torch.device) -> None:
    torch.manual_seed(5)
    base = torch.randn(4, 5, 32, device=device)
    weight, bias = weights(64, torch.float32, device)
    for x in (base[:, 0], base[..., ::2], base.transpose(1, 2), base[:, :1].expand(-1, 3, -1)):
        w, b = weight[::2][: x.shape[-1]], bias[::2][: x.shape[-1]]
        x = x.detach().requires_grad_()
        out, summed = norm(x, w, b, EPS, x.detach().flip(0))
        total = x.detach().double() + x.detach().double().flip(0)
        assert_near(out.detach(), exact(total, w.double(), b.double()), 2**-18)
        assert summed.shape == x.shape
        out.sum().backward()  # an expanded gradient
        assert x.grad is not None and x.grad.isfinite().all()


def test_zero_rows(device: torch.device) -> None:
    x = torch.zeros(0, 257, 32, device=device, requires_grad=True)
    weight, bias = weights(32, torch.float32, device)
    out, summed = norm(x, weight, bias, EPS, x.detach())
    assert out.shape == summed.shape == x.shape
    (out.sum() + summed.sum()).backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_opcheck(device: torch.device) -> None:
    torch.manual_seed(6)
    x, residual = torch.randn(2, 2, 6, device=device).unbind()
    weight, bias = weights(6, torch.float32, device)
    wanted = x.clone().requires_grad_()
    torch.library.opcheck(torch.ops.steer.norm.default, (wanted, weight, bias, EPS))
    torch.library.opcheck(torch.ops.steer.add_norm.default, (wanted, residual, weight, bias, EPS))
    for direct in (None, residual):
        args = (x, direct, residual, weight, EPS)
        torch.library.opcheck(torch.ops.steer.norm_backward.default, args)


def test_compiles_without_graph_breaks(device: torch.device) -> None:
    torch.manual_seed(7)
    x, residual = torch.randn(2, 3, 10, device=device).unbind()
    weight, bias = weights(10, torch.float32, device)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    for ours, plain in zip(
        compiled(x, weight, bias, EPS, residual), norm(x, weight, bias, EPS, residual), strict=True
    ):
        assert torch.equal(ours, plain)


def test_the_reference_runs_on_cpu_and_has_gradients() -> None:
    torch.manual_seed(8)
    x, residual = torch.randn(2, 2, 3, 7, dtype=torch.float64).unbind()
    weight, bias = (w.double() for w in weights(7, torch.float32, "cpu"))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: norm(x, weight, bias, EPS, residual), x)
    out, summed = norm_ref(x, weight, bias, EPS, residual)
    assert torch.allclose(out, exact(summed, weight, bias), atol=1e-12)


@given(st.integers(1, MAX_WIDTH))
def test_parts_cover_a_row(width: int) -> None:
    head, tail = parts(width)
    assert head & (head - 1) == tail & (tail - 1) == 0
    assert head < width <= head + tail or (width, head, tail) == (1, 1, 1)
    assert head + tail < 2 * width or width == 1


def test_bad_input() -> None:
    x, one = torch.randn(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"weight\.shape=\(7,\).*weight and bias are \(width,\)"):
        norm(x, torch.ones(7), one, EPS)
    with pytest.raises(ValueError, match=r"residual\.shape=\(8,\): pass one of x's, \(2, 8\)"):
        norm(x, one, one, EPS, one)
    with pytest.raises(ValueError, match=r"weight\.requires_grad=True: only the input"):
        norm(x, one.clone().requires_grad_(), one, EPS)
    with pytest.raises(ValueError, match=r"x on cpu, weight on cpu, bias on meta.*one device"):
        norm(x, one, one.to("meta"), EPS)
    with pytest.raises(TypeError, match=r"x\.dtype=torch\.int64: pass a floating"):
        norm(x.long(), one, one, EPS)
    with pytest.raises(TypeError, match=r"x\.dtype=torch\.float8_e4m3fn: pass float16"):
        norm(x.to(torch.float8_e4m3fn), one, one, EPS)
    with pytest.raises(TypeError, match=r"residual\.dtype=torch\.float16: pass x's"):
        norm(x, one, one, EPS, x.half())
