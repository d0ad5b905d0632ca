from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from steer_kernels import fp8
from steer_kernels.common import jit, tl
from steer_kernels.linear_gelu import Kind
from steer_kernels.norm import norm
from steer_kernels.quant import (
    dequantise,
    fp8_available,
    gelu_quant,
    gelu_quant_ref,
    linear_fp8,
    norm_quant,
    norm_quant_ref,
    quantise_ref,
    quantise_weight,
    to_e4m3,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


E4M3 = torch.float8_e4m3fn
EPS = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def exact_gelu(x: Tensor, kind: Kind) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x)) if kind == "quick" else x * torch.special.ndtr(x)


def exact_norm(summed: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = summed - summed.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


def assert_quantised(q: Tensor, scale: Tensor, truth: Tensor, slack: float = 2**-18) -> None:
    """The largest value of a row is 448 scales; each is off by half a step of E4M3 at most."""
    assert q.dtype == E4M3 and scale.dtype == torch.float32
    assert q.shape == truth.shape and scale.shape == truth.shape[:-1]
    amax = truth.abs().amax(-1)
    assert torch.allclose(scale.double() * 448, amax, rtol=slack, atol=0)
    error = (dequantise(q, scale, torch.float64) - truth).abs()
    half_step = torch.maximum(truth.abs() / 16, scale.double().unsqueeze(-1) / 1024)
    assert (error <= half_step + slack * amax.unsqueeze(-1)).all()


@jit
def cast_kernel(x_ptr, q_ptr, ROUND: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(q_ptr + index, to_e4m3(tl.load(x_ptr + index), ROUND))


def test_every_half_precision_number_is_cast_as_pytorch_casts_it(device: torch.device) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(torch.float16)
    x = every.float()
    x = torch.where(x.abs() <= 448, x, 448.0).contiguous()  # NaN and infinity have their own test
    q = torch.empty(x.shape, dtype=E4M3, device=device)
    cast_kernel[(16,)](x, q, ROUND=device.type == "cpu", BLOCK=4096)
    assert torch.equal(q.float(), x.to(E4M3).float())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((3, 45), dtype) for dtype in DTYPES),
        ((1, 768), torch.float16),
        ((3, 1280), torch.float16),
        ((2, 1, 1664), torch.float32),
    ],
    ids=str,
)
def test_norm_quant(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, residual: bool
) -> None:
    torch.manual_seed(0)
    x, stream = (3 * torch.randn(2, *shape, device=device)).to(dtype).unbind()
    weight, bias = (1 + torch.randn(2, shape[-1], device=device)).to(dtype).unbind()
    given = stream if residual else None
    q, scale, summed = norm_quant(x, weight, bias, EPS, given)
    assert torch.equal(summed, norm(x, weight, bias, EPS, given)[1])
    assert (summed is x) != residual
    assert_quantised(q, scale, exact_norm(summed.double(), weight.double(), bias.double()))


@pytest.mark.parametrize("kind", ["erf", "quick"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*(((3, 45), dtype) for dtype in DTYPES), ((1, 2, 5120), torch.float16)],
    ids=str,
)
def test_gelu_quant(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, kind: Kind
) -> None:
    torch.manual_seed(1)
    x = (2 * torch.randn(shape, device=device)).to(dtype)
    assert_quantised(*gelu_quant(x, kind), exact_gelu(x.double(), kind))


def test_kernels_agree_with_the_references(device: torch.device) -> None:
    torch.manual_seed(2)
    x, stream = torch.randn(2, 4, 300, device=device).unbind()
    weight, bias = torch.randn(2, 300, device=device).unbind()
    pairs = [
        (gelu_quant(x, "erf"), gelu_quant_ref(x, "erf")),
        (
            norm_quant(x, weight, bias, EPS, stream)[:2],
            norm_quant_ref(x, weight, bias, EPS, stream)[:2],
        ),
    ]
    for (q, scale), (q_ref, scale_ref) in pairs:
        assert torch.allclose(scale, scale_ref, rtol=1e-6)
        assert (q.float() == q_ref.float()).double().mean() > 0.995  # ties fall either way


def test_zeros_stay_zeros_and_nan_stays_nan(device: torch.device) -> None:
    x = torch.zeros(3, 20, device=device)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    q, scale = gelu_quant(x, "quick")
    out = dequantise(q, scale)
    assert (out[0] == 0).all() and scale[0] > 0
    assert out[1, 3].isnan() and out[2].isnan().all()


def test_any_strides_and_zero_rows(device: torch.device) -> None:
    torch.manual_seed(3)
    base = torch.randn(3, 2, 16, device=device)
    for x in (base[:, 0], base[..., ::2], base.transpose(1, 2), base[:0]):
        weight, bias = (1 + torch.randn(2, x.shape[-1], device=device)).unbind()
        q, scale, summed = norm_quant(x, weight, bias, EPS, x)
        assert q.shape == summed.shape == x.shape and scale.shape == x.shape[:-1]
        gelu_q, gelu_scale = gelu_quant(x)
        assert gelu_q.shape == x.shape and gelu_scale.shape == x.shape[:-1]
        if len(x):
            assert_quantised(gelu_q, gelu_scale, exact_gelu(x.double(), "erf"))
            assert_quantised(q, scale, exact_norm(2 * x.double(), weight.double(), bias.double()))


def test_opcheck(device: torch.device) -> None:
    torch.manual_seed(4)
    x, stream = torch.randn(2, 2, 6, device=device).unbind()
    weight, bias = torch.randn(2, 6, device=device).unbind()
    ops = torch.ops.steer
    torch.library.opcheck(ops.norm_quant.default, (x, weight, bias, EPS))
    torch.library.opcheck(ops.add_norm_quant.default, (x, stream, weight, bias, EPS))
    torch.library.opcheck(ops.gelu_quant.default, (x, True))


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=30),
    st.floats(2**-20, 2**20, width=32),
)
def test_quantised_rows_keep_their_bounds(values: list[float], factor: float) -> None:
    x = torch.tensor([values]) * factor
    q, scale = quantise_ref(x)
    assert torch.isfinite(q.float()).all()
    error = (dequantise(q, scale, torch.float64) - x.double()).abs()
    bound = torch.maximum(x.double().abs() / 16, scale.double()[:, None] / 1024)
    assert (error <= bound * (1 + 2**-20)).all()


def test_linear_fp8_is_the_product_of_the_dequantised_matrices() -> None:
    torch.manual_seed(5)
    x, weight, bias = torch.randn(2, 3, 96), torch.randn(40, 96), torch.randn(40)
    (q, scale), (weight_q, weight_scale) = quantise_ref(x), quantise_weight(weight)
    exact = (
        dequantise(q, scale, torch.float64) @ dequantise(weight_q, weight_scale, torch.float64).T
    )
    out = linear_fp8(q, scale, weight_q, weight_scale, bias)
    assert out.dtype == torch.bfloat16 and out.shape == (2, 3, 40)
    assert torch.allclose(out.double(), exact + bias, rtol=2**-8, atol=1e-4)
    out = linear_fp8(q, scale, weight_q, weight_scale, None, torch.float32)
    assert torch.allclose(out.double(), exact, rtol=1e-5, atol=1e-4)
    truth = x.double() @ weight.double().T
    noise = 10 * torch.log10((out - truth).square().mean() / truth.square().mean())
    assert -35 < noise < -27  # two operands rounded to 3 bits each


def cpu_takes_row_scales() -> bool:
    """Older versions of torch have no FP8 product on the CPU, or one with a scale per tensor."""
    ones, scale = torch.ones(16, 16).to(E4M3), torch.ones(16)
    try:
        torch._scaled_mm(
            ones, ones.T, scale_a=scale[:, None], scale_b=scale[None], out_dtype=torch.bfloat16
        )
    except (NotImplementedError, RuntimeError):
        return False
    return True


@pytest.mark.skipif(not cpu_takes_row_scales(), reason="this torch has nothing to compare with")
def test_linear_fp8_matches_scaled_mm() -> None:
    torch.manual_seed(6)
    x, weight, bias = torch.randn(5, 64), torch.randn(32, 64), torch.randn(32)
    (q, scale), (weight_q, weight_scale) = quantise_ref(x), quantise_weight(weight)
    theirs = torch._scaled_mm(
        q,
        weight_q.T,
        scale_a=scale[:, None],
        scale_b=weight_scale[None],
        bias=bias.bfloat16(),
        out_dtype=torch.bfloat16,
    )
    ours = linear_fp8(q, scale, weight_q, weight_scale, bias.bfloat16())
    assert torch.allclose(ours.float(), theirs.float(), rtol=2**-6, atol=2**-6)


def test_the_gpu_path_hands_scaled_mm_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "fp8_available", lambda device: True)
    with FakeTensorMode():
        q = torch.empty(2, 3, 64, dtype=E4M3, device="cuda")
        scale, weight_scale = torch.empty(2, 3, device="cuda"), torch.empty(32, device="cuda")
        weight_q, bias = (
            torch.empty(32, 64, dtype=E4M3, device="cuda"),
            torch.empty(32, device="cuda"),
        )
        odd = torch.empty(31, 64, dtype=E4M3, device="cuda")
        out = linear_fp8(q, scale, weight_q, weight_scale, bias)
        assert out.shape == (2, 3, 32) and out.dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"dtype=torch\.float16: FP8 products on a GPU give"):
            linear_fp8(q, scale, weight_q, weight_scale, bias, torch.float16)
        with pytest.raises(ValueError, match=r"weight_q\.shape=\(31, 64\).*multiples of 16"):
            linear_fp8(q, scale, odd, torch.empty(31, device="cuda"), None)


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert fp8_available("cpu") and not fp8_available("cuda") and not fp8_available("meta")
    with pytest.raises(ValueError, match=r"device='cuda' has no FP8.*8\.9 or newer.*bfloat16"):
        fp8.check_fp8(torch.device("cuda"))
    capability = (8, 9)
    assert fp8_available("cuda")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not fp8_available("cuda")


def test_bad_input() -> None:
    x, one = torch.randn(2, 16), torch.ones(16)
    q, scale = quantise_ref(x)
    with pytest.raises(ValueError, match=r"requires_grad=True: gelu_quant has no gradient"):
        gelu_quant(x.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"requires_grad=True: norm_quant has no gradient"):
        norm_quant(x, one, one, EPS, x.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"kind='tanh'"):
        gelu_quant(x, "tanh")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"x\.dtype=torch\.float8_e4m3fn: pass float16"):
        gelu_quant(q)
    with pytest.raises(ValueError, match=r"weight has NaN or infinite entries"):
        quantise_weight(torch.full((2, 2), torch.inf))
    with pytest.raises(ValueError, match=r"weight\.shape=\(2,\): pass \(N, K\)"):
        quantise_weight(torch.ones(2))
    with pytest.raises(TypeError, match=r"q\.dtype=torch\.float32: pass torch\.float8_e4m3fn"):
        linear_fp8(x, scale, q, scale, None)
    with pytest.raises(TypeError, match=r"scale\.dtype=torch\.float16: pass torch\.float32"):
        linear_fp8(q, scale.half(), q, scale, None)
    with pytest.raises(ValueError, match=r"bias\.shape=\(16,\): pass \(2,\)"):
        linear_fp8(q, scale, q, scale, one)
    with pytest.raises(ValueError, match=r"weight_q\.shape=\(2, 15\): pass \(\.\.\., K\) and"):
        linear_fp8(q, scale, q[:, :15], scale, None)
    with pytest.raises(ValueError, match=r"scale on meta.*move them to one device"):
        linear_fp8(q, scale.to("meta"), q, scale, None)
