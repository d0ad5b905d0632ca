from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from steer_kernels.head import clip_head, clip_head_ref
from torch import Tensor


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ULP = {torch.float32: 2**-18, torch.float16: 2**-10, torch.bfloat16: 2**-7}
EPS, SCALE = 1e-5, 100.0


def head(
    b: int, d: int, e: int, p: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, ...]:
    """The arguments of `clip_head`, in its order, `paired` left out."""
    rows = (3 * torch.randn(b, d, device=device)).to(dtype)
    weight = (1 + 0.2 * torch.randn(d, device=device)).to(dtype)
    bias = (0.2 * torch.randn(d, device=device)).to(dtype)
    projection = (torch.randn(d, e, device=device) / d**0.5).to(dtype)
    texts = torch.nn.functional.normalize(torch.randn(p, e, device=device), dim=-1)
    return rows, weight, bias, EPS, projection, texts, SCALE


def exact(
    rows: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, texts: Tensor, paired: bool
) -> Tensor:
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / (rows.square().mean(1, keepdim=True) + EPS).sqrt() * weight + bias
    features = rows @ projection
    cosines = (features @ texts.T) / features.square().sum(1, keepdim=True).sqrt()
    return SCALE * (cosines.diagonal() if paired else cosines)


@pytest.mark.parametrize(
    ("b", "d", "e", "p", "paired", "dtype"),
    [
        *((3, 45, 40, 2, False, dtype) for dtype in DTYPES),
        *((3, 45, 40, 3, True, dtype) for dtype in DTYPES),
        (1, 768, 64, 1, False, torch.float16),
        (3, 1280, 33, 1, False, torch.float16),
        (2, 1664, 20, 2, True, torch.float32),
        (17, 20, 70, 18, False, torch.float32),
        (257, 12, 9, 1, False, torch.float32),
    ],
)
def test_scores_and_gradients_match_float64(
    device: torch.device, b: int, d: int, e: int, p: int, paired: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows, weight, bias, eps, projection, texts, scale = head(b, d, e, p, dtype, device)
    leaf = rows.double().requires_grad_()
    rows.requires_grad_()
    scores = clip_head(rows, weight, bias, eps, projection, texts, scale, paired)
    wide = (weight.double(), bias.double(), projection.double(), texts.double())
    expected = exact(leaf, *wide, paired)
    assert scores.dtype == torch.float32 and scores.shape == ((b,) if paired else (b, p))
    # Half-precision weights are read exactly: the scores are float32's whatever the type.
    assert (scores.double() - expected).abs().max() <= 2e-6 * SCALE

    grad = torch.randn(scores.shape, device=device)
    scores.backward(grad)
    expected.backward(grad.double())
    assert rows.grad is not None and leaf.grad is not None and rows.grad.dtype == dtype
    error = (rows.grad.double() - leaf.grad).abs().amax(1)
    # Summands of the gradient cancel in part: the bound is relative to their size.
    bound = ULP[dtype] * leaf.grad.abs().amax(1) + 2**-18 * leaf.grad.abs().amax()
    assert (error <= bound).all(), (error / bound).max()


def numpy_is_even() -> bool:
    """Whether numpy gives a row of a product the same bits wherever it stands: as the CPU likes."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((32, 64), dtype=np.float32)
    others = rng.standard_normal((64, 32), dtype=np.float32)
    return np.array_equal((rows[::-1] @ others)[::-1], rows @ others)


def test_a_row_scores_the_same_in_any_batch_and_any_run(device: torch.device) -> None:
    """To the bit, but under the interpreter where numpy's products depend on a row's place."""
    loose = device.type == "cpu" and not numpy_is_even()

    def same(one: Tensor, other: Tensor) -> bool:
        return bool((one - other).abs().max() <= (1e-6 * SCALE if loose else 0))

    torch.manual_seed(1)
    rows, *rest = head(21, 150, 70, 19, torch.float16, device)
    together = clip_head(rows, *rest)
    assert torch.equal(clip_head(rows, *rest), together)
    for i in (0, 7, 20):
        assert same(clip_head(rows[i : i + 1], *rest), together[i : i + 1])
    turned = clip_head(rows.flip(0), *rest).flip(0)
    assert same(turned, together)
    weight, bias, eps, projection, texts, scale = rest
    for j in (0, 18):
        alone = clip_head(rows, weight, bias, eps, projection, texts[j : j + 1], scale)
        assert same(alone[:, 0], together[:, j])


def test_class_tokens_and_transposed_projections_are_read_in_place(device: torch.device) -> None:
    torch.manual_seed(2)
    _, weight, bias, eps, projection, texts, scale = head(4, 32, 24, 3, torch.float32, device)
    tokens = torch.randn(4, 5, 32, device=device, requires_grad=True)
    scores = clip_head(tokens[:, 0], weight, bias, eps, projection, texts, scale)
    dense = clip_head(tokens[:, 0].contiguous(), weight, bias, eps, projection, texts, scale)
    assert torch.equal(scores, dense)
    columns = projection.T.contiguous().T
    assert torch.equal(
        clip_head(tokens[:, 0], weight, bias, eps, columns, texts.T.contiguous().T, scale), dense
    )
    spread = torch.randn(4, 64, device=device)[:, ::2]
    one = texts[:1].expand(4, -1)
    paired = clip_head(spread, weight, bias, eps, projection, one, scale, paired=True)
    single = clip_head(spread, weight, bias, eps, projection, texts[:1], scale)[:, 0]
    assert torch.allclose(paired, single, atol=1e-4)
    scores.sum().backward()  # an expanded gradient
    assert tokens.grad is not None and tokens.grad[:, 0].abs().sum() > 0
    assert not tokens.grad[:, 1:].any()


def test_zero_images_and_zero_prompts(device: torch.device) -> None:
    for b, p, paired in ((0, 2, False), (0, 0, True), (3, 0, False)):
        rows, *rest = head(b, 16, 8, p, torch.float32, device)
        scores = clip_head(rows.requires_grad_(), *rest, paired=paired)
        assert scores.shape == ((b,) if paired else (b, p))
        scores.sum().backward()
        assert rows.grad is not None and not rows.grad.any()


def test_features_of_length_zero_score_zero(device: torch.device) -> None:
    rows, weight, bias, eps, projection, texts, scale = head(2, 16, 8, 2, torch.float32, device)
    scores = clip_head(rows, 0 * weight, 0 * bias, eps, projection, texts, scale)
    assert torch.equal(scores, torch.zeros(2, 2, device=device))


def test_opcheck(device: torch.device) -> None:
    torch.manual_seed(3)
    rows, *rest = head(2, 8, 6, 2, torch.float32, device)
    ops = torch.ops.steer
    for paired in (False, True):
        args = (rows.clone().requires_grad_(), *rest, paired)
        torch.library.opcheck(ops.clip_head.default, args)
        scores, features, norms = ops.clip_head(rows, *rest, paired)
        weight, _, eps, *others = rest
        args = (scores.clone(), scores, features, norms, rows, weight, eps, *others, paired)
        torch.library.opcheck(ops.clip_head_backward.default, args)


def test_compiles_without_graph_breaks(device: torch.device) -> None:
    torch.manual_seed(4)
    arguments = head(2, 8, 6, 2, torch.float32, device)
    compiled = torch.compile(clip_head, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), clip_head(*arguments))


@pytest.mark.parametrize("paired", [False, True])
def test_the_reference(paired: bool) -> None:
    torch.manual_seed(5)
    rows, weight, bias, eps, *rest = head(3, 7, 5, 3, torch.float64, "cpu")
    projection, texts = rest[0], rest[1].double()
    rows.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: clip_head(rows, weight, bias, eps, projection, texts, SCALE, paired), rows
    )
    scores = clip_head_ref(rows, weight, bias, eps, projection, texts, SCALE, paired)
    assert torch.allclose(scores, exact(rows, weight, bias, projection, texts, paired))


def test_bad_input() -> None:
    rows, weight, bias, eps, projection, texts, scale = head(3, 8, 4, 2, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"texts\.shape=\(2, 4\): pass \(3, 4\)"):
        clip_head(rows, weight, bias, eps, projection, texts, scale, paired=True)
    with pytest.raises(ValueError, match=r"texts\.shape=\(4,\): pass \(4, 4\)"):
        clip_head(rows, weight, bias, eps, projection, texts[0], scale)
    with pytest.raises(ValueError, match=r"rows\.shape=\(3, 7\): pass \(3, 8\)"):
        clip_head(rows[:, :7], weight, bias, eps, projection, texts, scale)
    with pytest.raises(ValueError, match=r"rows\.shape=\(3, 1, 8\).*pass \(B, D\) and \(D, E\)"):
        clip_head(rows[:, None], weight, bias, eps, projection, texts, scale)
    with pytest.raises(ValueError, match=r"ln_bias\.shape=\(2,\): pass \(8,\)"):
        clip_head(rows, weight, bias[:2], eps, projection, texts, scale)
    with pytest.raises(ValueError, match=r"projection\.requires_grad=True: only the input"):
        clip_head(rows, weight, bias, eps, projection.clone().requires_grad_(), texts, scale)
    with pytest.raises(ValueError, match=r"texts on meta.*move them to one device"):
        clip_head(rows, weight, bias, eps, projection, texts.to("meta"), scale)
    with pytest.raises(TypeError, match=r"rows\.dtype=torch\.int64"):
        clip_head(rows.long(), weight, bias, eps, projection, texts, scale)
    with pytest.raises(TypeError, match=r"scale=tensor\(100\.\): pass a number, exp"):
        clip_head(rows, weight, bias, eps, projection, texts, torch.tensor(100.0))  # pyright: ignore
