"""CUDA graphs of a function of batches: one per batch size of a short list, captured on first use.

At batch 1 a vision tower is several hundred launches of a few microseconds of work each; a graph
is one launch. A batch of any size is cut into pieces of the listed sizes; a piece that is a little
smaller than its graph fills it up with rows that are thrown away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


logger = logging.getLogger("steer.kernels")

BUCKETS = (1, 2, 4, 8, 12, 24, 64)
"""Batch sizes with a graph: 12, 24 and 64 fill the waves of an H100's or H200's multiprocessors
better than 16 and 32 do."""

WASTE = 0.25
"""Largest share of a graph's rows that may be filling."""

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]
Capture = Callable[[Function, Outputs, Any], tuple[Outputs, Callable[[], Any]]]


def pieces(count: int, buckets: Sequence[int] = BUCKETS) -> Iterator[tuple[int, int, int]]:
    """How `count` rows are cut: first row, number of rows, batch size of the graph that runs them.

    What is left goes to the smallest graph that holds it, unless more than `WASTE` of that would be
    filling; then to the largest that it fills.
    """
    start = 0
    while start < count:
        left = count - start
        holds = next((size for size in buckets if size >= left), None)
        if holds is None or left < (1 - WASTE) * holds:
            holds = max(size for size in buckets if size <= left)
        rows = min(left, holds)
        yield start, rows, holds
        start += rows


@dataclass
class Captured:
    """A graph with the memory it reads and writes."""

    inputs: Outputs
    outputs: Outputs
    replay: Callable[[], Any]


class Graphs:
    """Runs functions of batches by graphs, where that works, and plainly where it does not.

    A function takes and returns tensors whose first axis is the batch, row for row independent. Its
    other inputs (weights) must stay where they are. All graphs share one pool of memory: they run
    one after another, and what they return is copied out.

    Args:
        largest: No graph of a larger batch.
        capture: Records `function(*inputs)`: what it returned, and how to run it again. Default: as
            a CUDA graph.

    Attributes:
        enabled: False once a capture has failed; the reason is logged.
    """

    def __init__(self, largest: int = BUCKETS[-1], capture: Capture | None = None) -> None:
        self.buckets = [size for size in BUCKETS if size <= largest]
        self._capture = capture or cuda_graph
        self._captured: dict[Any, Captured] = {}
        self._lock = threading.Lock()
        self._pool: Any = None
        self._done: Any = None
        self.enabled = True
        self._any_device = capture is not None

    def usable(self, inputs: Tensor) -> bool:
        """Whether graphs run these inputs: on CUDA, while nobody else records."""
        if not self.enabled or not len(inputs):
            return False
        on_cuda = inputs.is_cuda and not torch.cuda.is_current_stream_capturing()
        return self._any_device or (on_cuda and not torch.compiler.is_compiling())

    def run(self, function: Function, first: Tensor, *others: Tensor) -> Outputs:
        """`function(first, *others)` without gradient.

        Args:
            function: The function; its graphs are kept by batch size, shapes and types.
            first: `(B, ...)`.
            *others: `(B, ...)` each.

        Returns:
            What it returns, `(B, ...)` each.
        """
        with self._lock, torch.no_grad():
            parts = [
                self._piece(function, [x[start : start + rows] for x in (first, *others)], size)
                for start, rows, size in pieces(len(first), self.buckets)
            ]
        columns = zip(*parts, strict=True)
        return tuple(torch.cat(found) if len(parts) > 1 else found[0] for found in columns)

    def _piece(self, function: Function, inputs: Sequence[Tensor], size: int) -> Outputs:
        graph = self._graph(function, inputs, size) if self.enabled else None
        if graph is None:
            return function(*inputs)
        rows = len(inputs[0])
        self._wait()
        for mine, given in zip(graph.inputs, inputs, strict=True):
            mine[:rows].copy_(given)
        graph.replay()
        outputs = tuple(out[:rows].clone() for out in graph.outputs)
        self._record()
        return outputs

    def _graph(self, function: Function, inputs: Sequence[Tensor], size: int) -> Captured | None:
        key = (function, size, *((x.shape[1:], x.dtype, x.device) for x in inputs))
        if key not in self._captured:
            try:
                self._captured[key] = self._make(function, inputs, size)
            except RuntimeError as error:
                self.enabled = False
                first = str(error).partition("\n")[0]
                name = getattr(function, "__name__", function)
                logger.warning("no CUDA graph of %s x %d, none are used: %s", name, size, first)
                return None
        return self._captured[key]

    def _make(self, function: Function, inputs: Sequence[Tensor], size: int) -> Captured:
        # What an inference-mode caller allocates could not be written outside of that mode.
        with torch.inference_mode(False), torch.no_grad():
            static = tuple(x.new_zeros((size, *x.shape[1:])) for x in inputs)
            for mine, given in zip(static, inputs, strict=True):
                mine[: len(given)].copy_(given)
            if static[0].is_cuda and self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            outputs, replay = self._capture(function, static, self._pool)
        return Captured(static, outputs, replay)

    def _wait(self) -> None:
        """Lets the current stream wait for the last replay, which may be on another one."""
        if self._done is not None:
            self._done.wait()

    def _record(self) -> None:
        if self._pool is not None:
            self._done = torch.cuda.Event()
            self._done.record()


def cuda_graph(function: Function, inputs: Outputs, pool: Any) -> tuple[Outputs, Callable[[], Any]]:
    """Records `function(*inputs)` as a CUDA graph, after three runs that compile and set up.

    Raises:
        RuntimeError: The function cannot be recorded, or memory ran out.
    """
    with torch.cuda.device(inputs[0].device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = function(*inputs)
    return outputs, graph.replay
