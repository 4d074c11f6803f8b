"""How kernels are compiled, and what makes them fast and changes no result.

A row of state is touched about once a round and state is larger than the processor's caches, so
nearly every touch is a miss; asked for some rows ahead, the misses of several rows overlap.
Measured for payments at 100,000 cards: 9.5 to 5.8 us an event.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from features.jit import njit

__all__ = ["AHEAD", "borrowed", "inlined", "kernel", "prefetch", "stamp", "word_bytes", "words_at"]

F = TypeVar("F", bound=Callable[..., Any])

AHEAD = 8
"""Rows of the round between asking and using; measured on rows of 320 bytes: 4 to 16 are alike."""

_LINE_BYTES = 64

_IMPORTED = re.compile(rb"^\s*from features\.(\w+) import ", re.MULTILINE)
"""An import of a file of this package. Parsing each file for each kernel took 1.7 s of a start; a
line of a docstring that looks like one only makes the stamp stricter."""


def stamp(path: Path) -> str:
    """Hash of a source file and of every file of this package that it imports, direct or not.

    Parameters
    ----------
    path : a file of this package: what cached machine code of its kernels was made from
    """
    folder, closed, open_ = path.parent, {path}, [path]
    while open_:
        for name in _IMPORTED.findall(open_.pop().read_bytes()):
            imported = folder / f"{name.decode()}.py"
            if imported not in closed and imported.is_file():
                closed.add(imported)
                open_.append(imported)
    found = hashlib.sha256()
    for source in sorted(closed):
        found.update(source.name.encode() + source.read_bytes())
    return found.hexdigest()


_stamp = cache(stamp)


def kernel(function: F) -> F:
    """Compile a kernel, and never take a cached one that was made from other sources.

    numba looks only at the file a function stands in: a kernel whose helper in another file has
    changed would go on with the old helper's code.
    """
    compiled: Any = njit(function)
    kept = getattr(compiled._cache, "_cache_file", None)
    if kept is not None:
        kept._source_stamp = _stamp(Path(inspect.getfile(function)))
    return cast(F, compiled)


def inlined(function: F) -> F:
    """Compile a helper of a kernel into the kernel itself; a fifth off the time of `run_ring`."""
    compiled: Any = numba.njit(nogil=True, fastmath=False, error_model="numpy", inline="always")(
        function
    )
    return cast(F, compiled)


def _prefetch(typing_context: Any, array: Any, row: Any) -> Any:
    """Type and code of `prefetch`."""
    if not isinstance(array, types.Array) or array.ndim != 2 or array.layout != "C":
        return None
    signature = types.void(array, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        view = context.make_array(kind)(context, builder, arguments[0])
        width = builder.load(
            cgutils.gep_inbounds(  # type: ignore[no-untyped-call]
                builder, view._get_ptr_by_name("strides"), 0, 0
            )
        )
        byte = ir.IntType(8).as_pointer()
        start = builder.ptrtoint(view.data, ir.IntType(64))
        start = builder.add(start, builder.mul(arguments[1], width))
        void, word = ir.VoidType(), ir.IntType(32)
        ask = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(void, [byte, word, word, word])
        )
        lines = builder.add(width, ir.Constant(width.type, _LINE_BYTES - 1))
        lines = builder.udiv(lines, ir.Constant(width.type, _LINE_BYTES))
        with cgutils.for_range(builder, lines) as loop:
            at = builder.add(start, builder.mul(loop.index, ir.Constant(width.type, _LINE_BYTES)))
            place = builder.inttoptr(at, byte)
            builder.call(
                ask, [place, ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)]
            )
        return context.get_dummy_value()

    return signature, generate


prefetch: Any = intrinsic(_prefetch)
"""prefetch(array, row): ask for all cache lines of `array[row]`, array C-contiguous and of two
dimensions; inside kernels only."""


def _borrowed(typing_context: Any, *arrays: Any) -> Any:
    """Type and code of `borrowed`."""
    given: tuple[Any, ...] = arrays
    if isinstance(arrays[0], types.BaseTuple):
        given = tuple(arrays[0])  # type: ignore[arg-type]
    if not all(isinstance(array, types.Array) for array in given):
        return None
    many: Any = types.Tuple
    made = many(given) if len(given) > 1 else given[0]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = []
        for i, kind in enumerate(given):
            one = builder.extract_value(arguments[0], i)
            lent = context.make_array(kind)(context, builder, one)
            lent.meminfo = ir.Constant(lent.meminfo.type, None)
            found.append(lent._getvalue())
        return context.make_tuple(builder, made, found) if len(found) > 1 else found[0]

    star: Any = types.StarArgTuple
    return made(star(given)), generate


borrowed: Any = intrinsic(_borrowed)
"""borrowed(array, ...): the same arrays, of which nobody counts how many views there are; inside
kernels only, whose caller holds them. A row taken of an array counts itself in and out otherwise,
by two locked instructions: a tenth of all samples of the engine at 100,000 cards."""


def _pointer(typing_context: Any, address: Any) -> Any:
    """Type and code of `_pointer_of`."""
    if not isinstance(address, types.Integer):
        return None
    kind = types.CPointer(types.int64)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return kind(types.int64), generate


_pointer_of: Any = intrinsic(_pointer)


@inlined
def words_at(address: Any, rows: Any, words: Any) -> Any:
    """The int64 (rows, words) array that lies at an address; inside kernels only.

    Where a kernel is given many arrays that are alike but for their width, their addresses are one
    argument: a tuple of fifteen arrays takes longer to hand over than most calls have to do.
    Whoever moves an array has to say so.
    """
    return numba.carray(_pointer_of(address), (rows, words))  # type: ignore[attr-defined]


def _word_bytes(typing_context: Any, array: Any) -> Any:
    """Type and code of `word_bytes`."""
    if not isinstance(array, types.Array):
        return None
    size = array.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.int64, size)

    return types.int64(array), generate


word_bytes: Any = intrinsic(_word_bytes)
"""word_bytes(array): bytes of an element, a constant: what hangs on it is left out of the machine
code where it cannot be (`array.itemsize` is looked up); inside kernels only."""
