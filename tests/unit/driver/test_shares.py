"""Rows among several devices: who is asked what, where answers go, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steer.core.errors import PaddedLaneError, SteerError, UnsupportedPipelineError
from steer.driver.denoisers.tensors import gathered, picked
from steer.driver.replicas import as_devices, check_replicas, replica
from steer.driver.shares import Shares


SEEN: list[tuple[bool, list[float]]] = []
"""Whether the main thread was asked, and the first column of what it was asked."""
CPU = torch.device("cpu")
KNOWN = {(8, 16)}


def is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


class Product(nn.Module):
    """Latents times an embedding, in a tuple with a list, as a ControlNet's answers are."""

    def __init__(self, then: Callable[[Tensor], Any] = lambda x: None) -> None:
        super().__init__()
        self.weight, self.then = nn.Parameter(torch.ones(1)), then

    def forward(self, x: Tensor, more: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        SEEN.append((is_main(), x[:, 0].tolist()))
        self.then(x)
        product = x * more["embedding"] * self.weight
        return [product, -product], product + more["offset"]


class Pipe:
    _execution_device = CPU

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet


def shares(unet: nn.Module, slots: tuple[int, ...] = (), devices: int = 2, **more: Any) -> Shares:
    """Two prompts of four rows each, and as many null prompts."""
    given = {"checked": {unet: set(KNOWN)}, "count": lambda rows: None, **more}
    return Shares(Pipe(unet), [CPU] * devices, 4, 2, lambda: slots, **given)


X = torch.arange(16.0)[:, None] + torch.zeros(1, 3)
MORE = {"embedding": torch.arange(16.0)[:, None] * 10, "offset": torch.tensor(0.5)}


def ask(shared: Shares) -> tuple[list[Tensor], Tensor]:
    SEEN.clear()
    with shared.installed():
        return shared.pipe.unet(X, MORE)


def test_every_device_is_asked_for_the_lane_that_one_alone_would_have() -> None:
    lists, middle = ask(shares(Product()))
    exact = X * MORE["embedding"]
    assert torch.equal(middle, exact + 0.5)
    assert torch.equal(lists[0], exact) and torch.equal(lists[1], -exact)
    assert (True, [0, 1, 4, 5, 8, 9, 12, 13]) in SEEN
    assert (False, [2, 3, 6, 7, 10, 11, 14, 15]) in SEEN and len(SEEN) == 2


@pytest.mark.parametrize("slots", [(0, 1, 2, 4), (3,), (6, 7), (0, 5), (2, 4)])
@pytest.mark.parametrize("devices", [2, 4])
def test_only_what_is_needed_is_asked_and_comes_back_in_its_place(
    slots: tuple[int, ...], devices: int
) -> None:
    shared = shares(Product(), slots, devices)
    _, middle = ask(shared)
    rows = [*slots, *(slot + 8 for slot in slots)]
    assert len(middle) == 16
    assert torch.equal(middle[rows], (X * MORE["embedding"] + 0.5)[rows])
    assert sorted(value for _, values in SEEN for value in values) == rows
    assert len(SEEN) == shared.calls(slots)


def test_devices_answer_at_the_same_time() -> None:
    """Each waits until the others are there."""
    barrier = threading.Barrier(3, timeout=60)
    unet = Product()
    shared = Shares(
        Pipe(unet), [CPU] * 3, 3, 1, lambda: (), {unet: {(3, 6)}}, count=lambda rows: None
    )
    unet.then = lambda x: barrier.wait()
    for twin in shared._copies["unet"]:
        twin.then = unet.then
    with shared.installed():
        unet(X[:6], {"embedding": X[:6], "offset": 0.0})
    assert not any(thread.name.startswith("steer") for thread in threading.enumerate())
    assert "forward" not in vars(unet)


def test_a_batch_is_checked_once_by_a_row_in_another_batch() -> None:
    unet, checked, counts = Product(), {}, []
    shared = shares(unet, checked=checked, count=counts.append)
    _, middle = ask(shared)
    assert torch.equal(middle, X * MORE["embedding"] + 0.5)
    assert SEEN[0] == (True, [0, 1, 4, 5, 7, 8, 9, 12, 13, 15]) and len(SEEN) == 3
    assert counts == [5] and shared.groups == 2 and shared.own == 4
    ask(shares(unet, checked=checked, count=counts.append))
    assert counts == [5] and len(SEEN) == 2


class Centred(nn.Module):
    """A row depends on its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class Fixed(nn.Module):
    """No other batch is taken."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(16, 3)


@pytest.mark.parametrize(("kind", "why"), [(Centred, "not answered as"), (Fixed, "size")])
def test_a_denoiser_whose_rows_are_not_apart_is_refused(kind: type, why: str) -> None:
    unet = kind()
    with (
        shares(unet, checked={}).installed(),
        pytest.raises(PaddedLaneError, match=f"Pipe: no narrower batches .*{why}"),
    ):
        unet(X)


def test_gradients_reach_the_latents_through_every_device() -> None:
    unet, x = Product(), X.clone().requires_grad_()
    unet.requires_grad_(False)
    with shares(unet).installed():
        unet(x, MORE)[1].sum().backward()
    assert torch.equal(x.grad, MORE["embedding"].expand(16, 3))


@pytest.mark.parametrize("grad", [True, False])
def test_a_copy_has_the_modes_of_the_thread_that_asks(grad: bool) -> None:
    modes: set[Any] = set()
    unet = Product(lambda x: None)
    unet.then = lambda x: modes.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        ask(shares(unet))
    assert modes == {(grad, True)}


def failing(error: Exception) -> Product:
    """Its copies raise, and it does not itself."""

    def fail(x: Tensor) -> None:
        if not is_main():
            raise error

    return Product(fail)


def test_an_error_of_a_copy_is_one_sentence() -> None:
    with pytest.raises(SteerError) as caught:
        ask(shares(failing(ValueError("odd\nthings"))))
    message = str(caught.value)
    assert message.startswith("devices: the copy of pipe.unet on cpu raised ValueError (odd)")
    assert "\n" not in message


def test_a_shortage_of_a_copy_goes_through_so_that_lanes_are_halved() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        ask(shares(failing(torch.OutOfMemoryError("CUDA out of memory"))))


def test_an_interrupt_waits_for_the_copies_and_leaves_nothing_behind() -> None:
    done = threading.Event()

    def work(x: Tensor) -> None:
        if is_main():
            raise KeyboardInterrupt
        threading.Event().wait(0.1)
        done.set()

    unet = Product(work)
    with pytest.raises(KeyboardInterrupt):
        ask(shares(unet))
    assert done.is_set() and "forward" not in vars(unet)
    assert not any(thread.name.startswith("steer") for thread in threading.enumerate())


def test_a_copy_shares_weights_on_its_own_device_and_takes_every_tensor_to_another() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.tied = nn.Linear(2, 2), nn.Linear(2, 2)
            self.tied.weight = self.inner.weight
            self.inner.bias.requires_grad_(False)
            self.register_buffer("table", torch.zeros(2))
            self.angles = {"x": [torch.zeros(3)], "n": 4}

    module = Turned()
    here, there = replica(module, CPU, "unet"), replica(module, torch.device("meta"), "unet")
    for own, twin in zip(module.parameters(), here.parameters(), strict=True):
        assert twin is not own and twin.data_ptr() == own.data_ptr()
        assert twin.requires_grad == own.requires_grad
    assert here.tied.weight is here.inner.weight
    tensors = [*there.parameters(), there.table, there.angles["x"][0]]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.device.type for tensor in module.parameters()} == {"cpu"}


def test_a_device_that_is_too_small_for_a_copy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB")

    monkeypatch.setattr("steer.driver.replicas._on", full)
    with pytest.raises(SteerError, match=r"^devices: cpu has no room for a copy of pipe.unet"):
        shares(Product())


def hooked() -> nn.Module:
    unet = Product()
    unet.register_forward_pre_hook(lambda module, args: None)
    return unet


def wrapped() -> nn.Module:
    unet = nn.Sequential(nn.Linear(1, 1))
    unet[0].forward = lambda x: x
    return unet


def compiled() -> nn.Module:
    unet = Product()
    unet.compile()
    return unet


class FourBit(nn.Parameter):
    pass


def quantised() -> nn.Module:
    unet = Product()
    unet.weight = FourBit(torch.ones(1))
    return unet


@pytest.mark.parametrize(
    ("make", "why"),
    [(hooked, "hooks"), (wrapped, "hooks"), (compiled, "compiled"), (quantised, "FourBit")],
)
def test_what_cannot_be_copied_is_said_before_sampling(make: Any, why: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match=f"^devices: pipe.unet .*{why}"):
        check_replicas(Pipe(make()), [CPU, CPU])


def test_the_pipelines_own_device_comes_first() -> None:
    with pytest.raises(ValueError, match=r"the first is cuda:1, and the pipeline is on cpu"):
        check_replicas(Pipe(Product()), [torch.device("cuda:1"), CPU])
    with pytest.raises(UnsupportedPipelineError, match=r"no pipe.unet or pipe.transformer"):
        check_replicas(Pipe(None), [CPU, CPU])


@pytest.mark.parametrize("value", ["cuda:0", 2, [], ["gpu"], [None], ["cuda:99"]])
def test_what_is_no_list_of_devices(value: Any) -> None:
    with pytest.raises(ValueError, match="devices"):
        as_devices(value)


@pytest.mark.parametrize("lists", [False, True])
def test_gathered_is_the_inverse_of_picked(lists: bool) -> None:
    rows = torch.randn(5, 4, 3).transpose(1, 2)
    value = list(rows) if lists else {"a": (rows, [rows, None]), "b": torch.tensor(1.0)}
    parts = [picked(value, 5, index, lists) for index in ([0, 1, 2], [3, 4])]
    whole = gathered(parts, [3, 2], lists)
    if lists:
        assert torch.equal(torch.stack(whole), rows)
        return
    assert torch.equal(whole["a"][0], rows) and torch.equal(whole["a"][1][0], rows)
    assert whole["a"][0].stride() == rows.stride()  # permuted as it was: last digits depend on it
    assert whole["a"][1][1] is None and whole["b"] == 1
