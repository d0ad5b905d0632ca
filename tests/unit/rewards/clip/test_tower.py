"""The fused tower against open_clip's own modules on the same weights."""

from __future__ import annotations

import logging
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

import steer
from steer.rewards.clip.encoder import Encoder
from steer.rewards.clip.fused import choose_tower
from steer.rewards.clip.graphs import BUCKETS, WASTE, Graphs, pieces
from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.clip.tower import VitTower
from steer.rewards.clip.tower_weights import unfit, vit_weights
from steer.rewards.models.clip import ClipReward
from steer.rewards.sharing import once, sharing


TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
SHAPES = {
    "d64-patch14": {"image_size": 56, "layers": 3, "width": 128, "head_width": 64},
    "d80-patch16": {"image_size": 48, "layers": 2, "width": 160, "head_width": 80},
    "d32-patch32": {"image_size": 64, "layers": 1, "width": 64, "head_width": 32},
}
FEATURES = 24


def clip_model(vision: dict, quick: bool = False, **config) -> open_clip.CLIP:
    """A frozen random CLIP whose features vary."""
    torch.manual_seed(0)
    vision = {"patch_size": 16, **vision}
    model = open_clip.CLIP(
        embed_dim=FEATURES, vision_cfg=vision, text_cfg=TEXT, quick_gelu=quick, **config
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def small(name: str = "d64-patch14", quick: bool = False) -> open_clip.CLIP:
    vision = SHAPES[name]
    return clip_model({**vision, "patch_size": int(name.partition("patch")[2])}, quick)


def inputs(count: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of an odd size, and unit texts."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 61, 90, generator=generator, dtype=dtype)
    texts = torch.randn(count, FEATURES, generator=generator, dtype=dtype)
    return images, F.normalize(texts, dim=-1)


def plain(model: open_clip.CLIP, preprocess: Preprocess, images, texts) -> torch.Tensor:
    features = F.normalize(model.encode_image(preprocess(images)), dim=-1)
    return (features * texts).sum(-1)


def preprocess_of(model: open_clip.CLIP, **options) -> Preprocess:
    return Preprocess(size=model.visual.image_size, **options)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_features_scores_and_gradients_are_open_clips_in_float64(name, quick):
    model = small(name, quick).double()
    tower, preprocess = VitTower(model), preprocess_of(model)
    images, texts = inputs()
    patches = tower.patches(images, preprocess)
    rows = tower.rows(patches)
    units = torch.eye(FEATURES, dtype=torch.float64)
    features = torch.stack([tower.head(rows, u.expand(3, -1)) for u in units], 1)
    expected = F.normalize(model.encode_image(preprocess(images)), dim=-1)
    assert (features - expected).abs().max() < 1e-10

    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    scores = tower.scores(tower.patches(mine, preprocess), texts)
    reference = plain(model, preprocess, theirs, texts)
    assert (scores - reference).abs().max() < 1e-10
    (scores @ weights).backward()
    (reference @ weights).backward()
    assert (mine.grad - theirs.grad).abs().max() < 1e-10 * theirs.grad.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", SHAPES)
def test_float32_is_close(name):
    model = small(name)
    tower, preprocess = VitTower(model), preprocess_of(model, resize="longest", clamp=False)
    images, texts = inputs(dtype=torch.float32)
    with torch.no_grad():
        expected = plain(model, preprocess, images, texts)
        assert torch.allclose(
            tower.scores(tower.patches(images, preprocess), texts), expected, atol=1e-5
        )


def test_gradients_are_finite_differences():
    model = small().double()
    tower, preprocess = VitTower(model), preprocess_of(model)
    images, texts = inputs(1)
    leaf = images.clone().requires_grad_()
    tower.scores(tower.patches(leaf, preprocess), texts).sum().backward()
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        way = torch.randn(images.shape, generator=generator, dtype=torch.float64) * 1e-4
        up, down = (tower.scores(tower.patches(images + s * way, preprocess), texts)
                    for s in (1, -1))  # fmt: skip
        assert float((up - down) / 2) == pytest.approx(float((leaf.grad * way).sum()), rel=1e-4)


PREPROCESSINGS = {
    "shortest": {},
    "longest": {"resize": "longest", "clamp": False},
    "floor crop": {"crop": "floor"},
    "gray padding": {"resize": "longest", "fill": 0.5},
    "squash": {"resize": "squash"},
    "bilinear": {"interpolation": "bilinear"},
    "aliased": {"antialias": False},
}


@pytest.mark.parametrize("options", PREPROCESSINGS.values(), ids=PREPROCESSINGS)
def test_patches_are_the_preprocessed_image(options):
    model = small().double()
    tower, preprocess = VitTower(model), preprocess_of(model, **options)
    for height, width in ((61, 90), (56, 56), (80, 80), (90, 61)):
        images = torch.rand(2, 3, height, width, dtype=torch.float64)
        expected = F.unfold(preprocess(images), 14, stride=14).mT
        assert (tower.patches(images, preprocess) - expected).abs().max() < 1e-12


def test_the_last_block_on_the_class_token_alone_is_exact():
    tower = VitTower(small("d80-patch16").double())
    patches = torch.randn(2, 9, 768, dtype=torch.float64)
    last = tower.weights.blocks[-1]
    whole = VitTower.trunk(tower, patches)
    tower.weights = replace(tower.weights, blocks=(*tower.weights.blocks, last))
    tower._last = lambda block, stream, added: (stream + added)[:, 0]  # after all full blocks
    assert (tower.trunk(patches) - whole).abs().max() < 1e-12


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_change_nothing(chunk):
    model = small("d32-patch32").double()
    preprocess = preprocess_of(model)
    images, texts = inputs(5)
    results = []
    for tower in (VitTower(model, chunk=chunk), VitTower(model)):
        leaf = images.clone().requires_grad_()
        scores = tower.scores(tower.patches(leaf, preprocess), texts, scale=3.0)
        scores.sum().backward()
        with torch.no_grad():
            free = tower.scores(tower.patches(images, preprocess), texts, scale=3.0)
        results.append((scores.detach(), free, leaf.grad))
    for one, all_ in zip(*results, strict=True):
        assert torch.allclose(one, all_, atol=1e-12)
    assert torch.allclose(results[0][0], 3 * plain(model, preprocess, images, texts))


def test_zero_images():
    tower = VitTower(small("d32-patch32"))
    patches = torch.zeros(0, 4, 3072)
    assert tower.scores(patches, torch.zeros(0, FEATURES)).shape == (0,)
    leaf = patches.requires_grad_()
    assert tower.scores(leaf, torch.zeros(0, FEATURES)).shape == (0,)
    with pytest.raises(ValueError, match="chunk=0"):
        VitTower(small("d32-patch32"), chunk=0)


def test_second_derivatives_are_refused():
    tower = VitTower(small("d32-patch32"))
    patches = torch.randn(1, 4, 3072, requires_grad=True)
    scores = tower.scores(patches, torch.ones(1, FEATURES))
    (slope,) = torch.autograd.grad(scores.square().sum(), patches, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def recorded(function, static, pool):
    """As a CUDA graph: fixed memory, written again at every replay."""
    outputs = tuple(out.clone() for out in function(*static))

    def replay():
        for kept, new in zip(outputs, function(*static), strict=True):
            kept.copy_(new)

    return outputs, replay


def test_graphs_change_nothing():
    model = small("d32-patch32").double()
    preprocess = preprocess_of(model)
    graphs = Graphs(4, capture=recorded)
    tower, other = VitTower(model, graphs=graphs), VitTower(model, graphs=False)
    images, texts = inputs(7)
    first, second = images[:5].clone().requires_grad_(), images[2:].clone().requires_grad_()
    with torch.inference_mode():
        quick = tower.rows(tower.patches(images, preprocess))
    assert torch.allclose(quick, other.rows(other.patches(images, preprocess)), atol=1e-12)
    # Both are run before either goes backward: what a replay overwrites must not be what is kept.
    a = tower.scores(tower.patches(first, preprocess), texts[:5])
    b = tower.scores(tower.patches(second, preprocess), texts[2:])
    (a.sum() + 2 * b.sum()).backward()
    for leaf, part, factor in ((first, slice(0, 5), 1), (second, slice(2, 7), 2)):
        alone = images[part].clone().requires_grad_()
        scores = other.scores(other.patches(alone, preprocess), texts[part])
        (factor * scores.sum()).backward()
        assert torch.allclose(leaf.grad, alone.grad, atol=1e-14)
    sizes = {key[1] for key in graphs._captured}
    assert sizes <= {1, 2, 4} and len(graphs._captured) <= 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("count", [1, 4])
def test_cuda_graphs_are_bit_equal(count):
    model = small().to("cuda", torch.bfloat16)
    preprocess = preprocess_of(model)
    images, texts = (x.cuda() for x in inputs(count, torch.float32))
    found = []
    for tower in (VitTower(model), VitTower(model, graphs=False)):
        for _ in range(2):
            leaf = images.clone().requires_grad_()
            scores = tower.scores(tower.patches(leaf, preprocess), texts)
            scores.sum().backward()
            rows = tower.rows(tower.patches(images, preprocess))
            found.append((scores.detach(), leaf.grad, rows))
        if tower.graphs:
            assert tower.graphs.enabled and len(tower.graphs._captured) == 2
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_failed_capture_is_logged_once_and_runs_plainly(caplog):
    def fails(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model = small("d32-patch32")
    tower = VitTower(model, graphs=Graphs(capture=fails))
    patches = torch.randn(3, 4, 3072)
    with caplog.at_level(logging.WARNING, "steer.kernels"):
        rows = [tower.rows(patches) for _ in range(2)]
    assert torch.allclose(rows[0], VitTower(model).rows(patches)) and torch.equal(*rows)
    (record,) = caplog.records
    assert "_rows x 4" in record.message and record.message.endswith("stream is capturing")
    assert not Graphs().usable(patches)  # a CPU tensor


@given(count=st.integers(1, 700), largest=st.sampled_from(BUCKETS))
def test_pieces_cover_every_row_and_waste_little(count, largest):
    buckets = [size for size in BUCKETS if size <= largest]
    found = list(pieces(count, buckets))
    assert [start for start, _, _ in found] == [
        sum(rows for _, rows, _ in found[:i]) for i in range(len(found))
    ]
    assert sum(rows for _, rows, _ in found) == count
    assert all(rows <= size and size - rows <= WASTE * size for _, rows, size in found)


UNFIT = {
    "attention pooling": ({"attentional_pool": True, "attn_pooler_heads": 4}, "class token alone"),
    "mean": ({"pool_type": "avg"}, "class token alone"),
    "layer scales": ({"ls_init_value": 0.1}, "layer scales"),
    "custom blocks": ({"qk_norm": True}, "CustomResidualAttentionBlock"),
    "rectangle": ({"image_size": [32, 64]}, "32 x 64"),
    "residual network": ({"layers": [1, 1, 1, 1], "width": 16}, "ModifiedResNet"),
    "tanh": ({"act_kwargs": {"approximate": "tanh"}}, "approximate='tanh'"),
}


@pytest.mark.parametrize(("change", "reason"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_named_and_left_to_open_clip(change, reason):
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, **change}
    model = clip_model(vision)
    assert reason in (unfit(model) or "")
    encoder = Encoder(model, None, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=r"cannot run this model: .*pass fused=False"):
        choose_tower(encoder, True)
    assert choose_tower(encoder, None) is None


def test_other_models_do_not_fit():
    assert "Linear" in (unfit(torch.nn.Linear(2, 2)) or "")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16}
    assert unfit(clip_model({**vision, "no_ln_pre": True, "patch_dropout": 0.5})) is None
    with pytest.raises(ValueError, match="not a plain vision transformer"):
        vit_weights(clip_model({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token",
                                "image_size": 224}))  # fmt: skip


def test_without_a_first_norm():
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "no_ln_pre": True}
    model = clip_model(vision).double()
    images, texts = inputs()
    tower, preprocess = VitTower(model), preprocess_of(model)
    scores = tower.scores(tower.patches(images, preprocess), texts)
    assert torch.allclose(scores, plain(model, preprocess, images, texts), atol=1e-12)


def encoder_of(model: open_clip.CLIP, dtype: torch.dtype = torch.float32) -> Encoder:
    encoder = Encoder(model, None, torch.device("cpu"), dtype)
    encoder.prompts = lambda prompts: inputs(len(prompts), torch.float32)[1]
    return encoder


def test_the_option():
    encoder = encoder_of(small())
    assert choose_tower(encoder, None) is None and choose_tower(encoder, False) is None
    assert choose_tower(encoder, True) is choose_tower(encoder, True)
    with pytest.raises(ValueError, match="fused='yes': one of None"):
        choose_tower(encoder, "yes")


def test_fp8_is_close_and_refuses_gradients():
    encoder = encoder_of(small())
    preprocess = preprocess_of(encoder.model)
    exact = ClipReward("exact", encoder, preprocess, fused=True)
    fast = ClipReward("fast", encoder, preprocess, fused="fp8")
    assert fast.tower is not exact.tower and exact.differentiable and not fast.differentiable
    quantised = [bool(block.qkv.quantised) for block in fast.tower.weights.blocks]
    assert quantised == [False, True, False]
    images = inputs(8, torch.float32)[0]
    one, other = exact(images, "x"), fast(images, "x")
    assert 0 < (one - other).abs().max() < 0.02
    with pytest.raises(ValueError, match=r"images.requires_grad=True with fp8.*fused=True"):
        fast(images.requires_grad_(), "x")
    with pytest.raises(ValueError, match="a tower of 2 blocks has none between"):
        VitTower(small("d80-patch16"), fp8=True)
    odd = clip_model({"image_size": 32, "layers": 3, "width": 40, "head_width": 20})
    with pytest.raises(ValueError, match=r"\(120, 40\).*multiples of 16"):
        VitTower(odd, fp8=True)


def test_the_bundled_scorer_is_the_same_fused():
    images = torch.rand(4, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    prompts = ["a red circle", "two blue squares"] * 2
    fused = steer.reward("shapes", device="cpu", fused=True)
    ordinary = steer.reward("shapes", device="cpu")
    assert fused.tower is not None and ordinary.tower is None
    grads = []
    for reward in (fused, ordinary):
        leaf = images.clone().requires_grad_()
        reward(leaf, prompts).sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(fused(images, prompts), ordinary(images, prompts), atol=1e-5)
    assert torch.allclose(*grads, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_rewards_scored_together_share_images_and_features(fused, monkeypatch):
    one, two = (
        encoder_of(small()),
        encoder_of(clip_model({**SHAPES["d64-patch14"], "patch_size": 14}).double().float()),
    )
    two.model.visual.proj.data.mul_(2).add_(0.1)
    preprocess = preprocess_of(one.model)
    padded = replace(preprocess, resize="longest")
    rewards = [
        ClipReward("a", one, preprocess, fused=fused),
        ClipReward("b", one, padded, fused=fused, scale=2.0),
        ClipReward("c", two, preprocess, fused=fused, batch=2),
        ClipReward("d", two, preprocess, fused=fused, batch=2),
    ]
    images = torch.rand(3, 3, 70, 70)
    apart = [reward(images, "x") for reward in rewards]
    made: list[str] = []

    def counted(owner, name, label):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (made.append(label), call(*a, **k))[1])

    counted(Preprocess, "__call__", "resize")
    counted(VitTower, "patches", "resize")
    counted(VitTower, "trunk", "trunk")
    counted(Encoder, "images", "trunk")
    parts = steer.reward({reward: 1.0 for reward in rewards}).parts(images, "x")
    for got, expected in zip(parts.values(), apart, strict=True):
        assert torch.allclose(got, expected, atol=1e-6)
    # c and d run in two pieces; a and b differ for open_clip's path, not for square images.
    assert (made.count("resize"), made.count("trunk")) == ((3, 3) if fused else (4, 4))
    assert one.towers.keys() == ({False} if fused else set())


def test_sharing_ends_and_notices_changes():
    images, calls = torch.rand(1, 3, 2, 2), []

    def make():
        return calls.append(0) or len(calls)

    assert [once(images, ("k",), make) for _ in range(2)] == [1, 2]
    with sharing():
        assert [once(images, ("k",), make) for _ in range(2)] == [3, 3]
        with sharing():
            assert once(images, ("k",), make) == 3
        assert once(images, ("other",), make) == 4 and once(images.clone(), ("k",), make) == 5
        images.mul_(2)
        assert once(images, ("k",), make) == 6
        leaf = images.clone().requires_grad_()
        assert [once(leaf, ("k",), make) for _ in range(2)] == [7, 8]
        with torch.no_grad():
            assert [once(leaf, ("k",), make) for _ in range(2)] == [9, 9]
    assert once(images, ("k",), make) == 10


def test_equal_weights_of_several_files_share_one_tower():
    first, again = encoder_of(small()), encoder_of(small())
    other = encoder_of(small())
    other.model.visual.proj.data[3, 5] += 1.0
    towers = [choose_tower(encoder, True) for encoder in (first, again, other)]
    assert towers[0] is towers[1] is not towers[2]
    mine, shared = again.model.visual.conv1.weight, first.model.visual.conv1.weight
    assert mine.data_ptr() == shared.data_ptr()
