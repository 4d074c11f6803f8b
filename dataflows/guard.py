"""A flow that fails in one sentence: what waxwing raises on purpose ends it without a panic.

An exception in a step makes Bytewax panic, with a backtrace of its engine on stderr before anyone
can catch it. Under a guard the first fault is remembered instead, every step does nothing from then
on, and the lanes end the flow; whoever ran it raises the fault (`dataflows/runner.py`). Nothing is
delivered or committed after the fault, as after a crash. A bug is no fault: it panics as before.
In a cluster other processes would wait for ever for one that does nothing, and under
`python -m bytewax.run` nobody raises the fault: there the first fault is told, and whoever is told
ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, TypeVar

from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from features.errors import WaxwingError

__all__ = ["Guard", "StepFault"]

X = TypeVar("X")
Y = TypeVar("Y")


class StepFault(WaxwingError):
    """A bug met in a step that works on events.

    Parameters
    ----------
    step : its name
    round_ : the last round it had done
    bug : what was raised
    """

    def __init__(self, step: str, round_: int, bug: Exception) -> None:
        super().__init__(f"step {step!r} raised {type(bug).__name__}: {bug}")
        self.step, self.round, self.bug = step, round_, bug


class Guard:
    """Holds the first fault of a flow and wraps what may raise one.

    Parameters
    ----------
    on : False leaves everything as it is
    tell : called with the first fault, in the thread that met it
    """

    def __init__(
        self, on: bool = True, tell: Callable[[WaxwingError], None] = lambda _fault: None
    ) -> None:
        self.on = on
        self.fault: WaxwingError | None = None
        self._tell = tell

    def _keep(self, fault: WaxwingError) -> None:
        """Remember a fault, if it is the first."""
        if self.fault is None:
            self.fault = fault
            self._tell(fault)

    def call(self, function: Callable[[], Y], nothing: Y) -> Y:
        """What the function gives; `nothing` where it raises a fault or one came before."""
        if self.fault is None:
            try:
                return function()
            except WaxwingError as fault:
                self._keep(fault)
        return nothing

    def close(
        self, inner: StatefulSourcePartition[Any, Any] | StatefulSinkPartition[Any, Any]
    ) -> None:
        """Close a partition, also after a fault, which stays the first."""
        try:
            inner.close()
        except WaxwingError as fault:
            self._keep(fault)

    def source(self, inner: FixedPartitionedSource[X, Any]) -> FixedPartitionedSource[X, Any]:
        """The source; its partitions end the flow once there is a fault."""
        return _Source(self, inner) if self.on else inner

    def logic(
        self, inner: Callable[[], StatefulBatchLogic[X, Y, int]], step: str = ""
    ) -> Callable[[Any], StatefulBatchLogic[X, Y, int]]:
        """A builder of a step's logic, as `stateful_batch` wants it; `step` names one on events."""
        return lambda _state: _Logic(self, inner(), step) if self.on else inner()

    def flat(self, function: Callable[[X], Iterable[Y]]) -> Callable[[X], Iterable[Y]]:
        """A function for `flat_map`."""

        def items(item: X) -> Iterator[Y]:
            if self.fault is None:
                try:
                    yield from function(item)
                except WaxwingError as fault:
                    self._keep(fault)

        return items if self.on else function

    def sink(self, inner: FixedPartitionedSink[X, Any]) -> FixedPartitionedSink[X, Any]:
        """The sink; it writes nothing once there is a fault."""
        return _Sink(self, inner) if self.on else inner


class _Source(FixedPartitionedSource[X, Any]):
    """See `Guard.source`."""

    def __init__(self, guard: Guard, inner: FixedPartitionedSource[X, Any]) -> None:
        self._guard, self._inner = guard, inner

    def list_parts(self) -> list[str]:
        return self._inner.list_parts()

    def build_part(
        self, step_id: str, for_part: str, resume_state: Any
    ) -> StatefulSourcePartition[X, Any]:
        def build() -> StatefulSourcePartition[X, Any] | None:
            return self._inner.build_part(step_id, for_part, resume_state)

        return _Partition(self._guard, self._guard.call(build, None))


class _Partition(StatefulSourcePartition[X, Any]):
    """A partition; None where it could not be opened."""

    def __init__(self, guard: Guard, inner: StatefulSourcePartition[X, Any] | None) -> None:
        self._guard, self._inner = guard, inner

    def next_batch(self) -> Iterable[X]:
        found: Iterable[X] = []
        if self._inner is not None:
            found = self._guard.call(self._inner.next_batch, found)
        if self._guard.fault is not None:
            raise AbortExecution
        return found

    def next_awake(self) -> datetime | None:
        if self._inner is None or self._guard.fault is not None:
            return None
        return self._inner.next_awake()

    def snapshot(self) -> Any:
        return None if self._inner is None else self._inner.snapshot()

    def close(self) -> None:
        if self._inner is not None:
            self._guard.close(self._inner)


class _Logic(StatefulBatchLogic[X, Y, int]):
    """A step's logic; one with a name works on events."""

    def __init__(self, guard: Guard, inner: StatefulBatchLogic[X, Y, int], step: str) -> None:
        self._guard, self._inner, self._step = guard, inner, step

    def on_batch(self, values: list[X]) -> tuple[Iterable[Y], bool]:
        nothing: tuple[Iterable[Y], bool] = ([], False)

        def work() -> tuple[Iterable[Y], bool]:
            try:
                return self._inner.on_batch(values)
            except WaxwingError:
                raise
            except Exception as bug:
                if not self._step:
                    raise
                raise StepFault(self._step, self._inner.snapshot(), bug) from bug

        return self._guard.call(work, nothing)

    def on_eof(self) -> tuple[Iterable[Y], bool]:
        nothing: tuple[Iterable[Y], bool] = ([], False)
        return self._guard.call(self._inner.on_eof, nothing)

    def snapshot(self) -> int:
        return self._inner.snapshot()


class _Sink(FixedPartitionedSink[X, Any]):
    """See `Guard.sink`."""

    def __init__(self, guard: Guard, inner: FixedPartitionedSink[X, Any]) -> None:
        self._guard, self._inner = guard, inner

    def list_parts(self) -> list[str]:
        return self._inner.list_parts()

    def build_part(
        self, step_id: str, for_part: str, resume_state: Any
    ) -> StatefulSinkPartition[X, Any]:
        def build() -> StatefulSinkPartition[X, Any] | None:
            return self._inner.build_part(step_id, for_part, resume_state)

        return _SinkPartition(self._guard, self._guard.call(build, None))


class _SinkPartition(StatefulSinkPartition[X, Any]):
    """A partition of the sink; None where it could not be opened."""

    def __init__(self, guard: Guard, inner: StatefulSinkPartition[X, Any] | None) -> None:
        self._guard, self._inner = guard, inner

    def write_batch(self, values: list[X]) -> None:
        inner = self._inner
        if inner is not None:
            self._guard.call(lambda: inner.write_batch(values), None)

    def snapshot(self) -> Any:
        return None if self._inner is None else self._inner.snapshot()

    def close(self) -> None:
        if self._inner is not None:
            self._guard.close(self._inner)
