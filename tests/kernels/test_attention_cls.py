from __future__ import annotations

import pytest
import torch
from steer_kernels import attention_cls as module
from steer_kernels.attention_cls import (
    HEAD_DIMS,
    attention_cls,
    attention_cls_ref,
    attention_cls_row,
    attention_cls_row_ref,
)
from torch import Tensor


TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def projections(
    batch: int,
    tokens: int,
    heads: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    generator = torch.Generator().manual_seed(tokens + dim)
    return torch.randn((batch, tokens, 3 * heads * dim), generator=generator).to(device, dtype)


def slow(qkv: Tensor, heads: int) -> Tensor:
    """Softmax attention written out, in float64."""
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    parts = qkv.double().reshape(batch, tokens, 3, heads, width // heads)
    scores = torch.einsum("bqhd,bkhd->bhqk", parts[:, :, 0], parts[:, :, 1])
    weights = (scores / (width // heads) ** 0.5).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, parts[:, :, 2]).reshape(batch, tokens, width)


@pytest.mark.sample
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "dim"),
    [(257, 1, 80), (50, 2, 64), (197, 1, 64), (67, 1, 104), (2, 2, 80), (66, 1, 88), (65, 1, 80)],
)
def test_kernels_against_float64(
    device: torch.device, tokens: int, heads: int, dim: int, dtype: torch.dtype
) -> None:
    if dtype != torch.float32 and tokens > 100:
        dim = 80
    qkv = projections(1 if tokens > 100 else 3, tokens, heads, dim, dtype, device)
    want, tolerance = slow(qkv, heads), TOLERANCE[dtype]
    got, row = attention_cls(qkv, heads), attention_cls_row(qkv, heads)
    assert got.dtype == row.dtype == dtype and got.is_contiguous()
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(row.double(), want[:, 0], rtol=tolerance, atol=tolerance)


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    qkv = projections(1, 66, 1, 64, torch.float16, device) * 30
    want = slow(qkv, 1)
    torch.testing.assert_close(attention_cls(qkv, 1).double(), want, rtol=1e-2, atol=0.1)
    torch.testing.assert_close(attention_cls_row(qkv, 1).double(), want[:, 0], rtol=1e-2, atol=0.1)


def test_strides_do_not_matter(device: torch.device) -> None:
    qkv = projections(2, 18, 2, 64, device=device)
    want, row = attention_cls(qkv, 2), attention_cls_row(qkv, 2)
    turned = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    spread = torch.stack([qkv, -qkv], -1)[..., 0]
    wide = torch.cat([qkv, -qkv], 2)[..., : qkv.shape[2]]
    for other in (turned, spread, wide, qkv[:1].expand(2, -1, -1)):
        assert not other.is_contiguous()
        fresh = other.contiguous()
        assert torch.equal(attention_cls(other, 2), attention_cls(fresh, 2))
        assert torch.equal(attention_cls_row(other, 2), attention_cls_row(fresh, 2))
    assert torch.equal(attention_cls(turned, 2), want)
    assert torch.equal(attention_cls_row(turned, 2), row)


@pytest.mark.parametrize("only_row", [False, True])
def test_gradients(device: torch.device, only_row: bool) -> None:
    qkv = projections(2, 18, 2, 80, device=device).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    want = slow(exact, 2)[:, 0] if only_row else slow(exact, 2)
    weight = torch.randn_like(want)
    (wanted,) = torch.autograd.grad(want, exact, weight)
    ops = (module._row_op, attention_cls_row) if only_row else (module._op, attention_cls)
    for op in ops:
        (got,) = torch.autograd.grad(op(qkv, 2), qkv, weight.float())
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_custom_ops(device: torch.device) -> None:
    qkv = projections(1, 9, 1, 64, device=device).requires_grad_()
    torch.library.opcheck(module._op, (qkv, 1))
    torch.library.opcheck(module._row_op, (qkv, 1))


def test_what_the_kernels_do_not_take_runs_the_reference(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("the kernel ran")

    monkeypatch.setattr(module, "_op", refuse)
    for dim in (32, 40, 72, 128):
        qkv = projections(1, 9, 2, dim, device=device)
        torch.testing.assert_close(
            attention_cls(qkv, 2).double(), slow(qkv, 2), rtol=1e-4, atol=1e-5
        )
    alone = projections(1, 1, 1, HEAD_DIMS[0], device=device)
    assert torch.equal(attention_cls(alone, 1), alone[..., 128:])
    double = projections(1, 9, 1, 64, torch.float64, device)
    torch.testing.assert_close(attention_cls(double, 1), slow(double, 1))


def test_references_against_float64() -> None:
    qkv = projections(3, 19, 2, 24, torch.float64)
    want = slow(qkv, 2)
    torch.testing.assert_close(attention_cls_ref(qkv, 2), want)
    torch.testing.assert_close(attention_cls_row_ref(qkv, 2), want[:, 0])
    torch.testing.assert_close(attention_cls(qkv, 2), want)
    torch.testing.assert_close(attention_cls_row(qkv, 2), want[:, 0])


def test_no_images() -> None:
    qkv = torch.empty(0, 257, 3 * 1280)
    assert attention_cls(qkv, 16).shape == (0, 257, 1280)
    assert attention_cls_row(qkv, 16).shape == (0, 1280)


@pytest.mark.parametrize("op", [attention_cls, attention_cls_row])
def test_bad_input(op: object) -> None:
    assert callable(op)
    with pytest.raises(ValueError, match=r"qkv.shape=\(5, 192\)"):
        op(torch.zeros(5, 192), 1)
    with pytest.raises(ValueError, match=r"qkv.shape=\(1, 0, 192\)"):
        op(torch.zeros(1, 0, 192), 1)
    with pytest.raises(ValueError, match="heads=5"):
        op(torch.zeros(1, 5, 192), 5)
    with pytest.raises(ValueError, match="heads=0"):
        op(torch.zeros(1, 5, 192), 0)
    with pytest.raises(TypeError, match=r"qkv.dtype=torch.int64"):
        op(torch.zeros((1, 5, 192), dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=r"more than 2\*\*31"):
        op(torch.zeros((1, 700000, 3 * 1280), device="meta"), 16)
