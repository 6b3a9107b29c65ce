"""Reads the pickle inside a torch file as data: a machine for the few instructions that a state_dict is made of.

A pickle is a program. Python's own unpickler runs it; a restricted one still lets it set attributes of whatever is
whitelisted, grow the memo at will and overflow the C stack by hashing nested tuples. Here nothing is called and nothing
is imported: a global is a name, a call to one of `CALLS` makes a plain value, and everything else is refused by name.
Work and memory are proportional to the bytes read: nothing is copied that the pickle can name again, nothing made
here is walked or printed whole (a few bytes describe a tree of 2 ** 40 leaves), and dicts hash nothing whose hash the
file can choose.
"""

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tljax.core.errors import UserError

# numpy names of what torch's storage classes hold; `torch.cuda.FloatStorage` is read like `torch.FloatStorage`.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Stream(Protocol):
    """What is read from: an open file, a `BytesIO` or an `mmap`."""

    def read(self, n: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """The name of something that the pickle would have imported."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view into a storage. All numbers are counted in elements and come unchecked from the file."""

    storage: Any
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(slots=True)
class Parameter:
    """A tensor in torch's wrapper; mutable because torch 0.1 made it first and filled it afterwards."""

    data: Any = None


class Mark:
    """Where a run of stack items begins."""


MARK = Mark()
LONGEST = 1_000_000  # instructions; a ResNet-152 takes about 40,000
LARGEST = 1 << 23  # bytes of a pickle; a ResNet-152 takes about 140,000
AXES = 8  # of a tensor, at most
TOO_LARGE = f"holds a pickle of more than {LARGEST} bytes"


def integers(values: Any) -> tuple[int, ...]:
    if isinstance(values, tuple | list) and len(values) > AXES:
        raise UserError(f"holds a tensor of {len(values)} axes, more than {AXES}")
    if not isinstance(values, tuple | list) or not all(type(v) is int and -(2**63) <= v < 2**63 for v in values):
        raise UserError("holds a tensor whose shape is not made of integers of 64 bits")
    return tuple(values)


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    return Tensor(storage, integers((offset,))[0], integers(shape), integers(stride))


def rebuild_parameter(data: Any = None, *_: Any) -> Parameter:
    return Parameter(data)


def empty_dict(*args: Any) -> dict[Any, Any]:
    if args:
        raise UserError("holds an OrderedDict made in an unusual way")
    return {}


def size(values: Any = ()) -> tuple[int, ...]:
    return integers(values)


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": empty_dict,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch.nn.parameter.Parameter": rebuild_parameter,  # as torch 0.1 wrote them
    "torch.Size": size,
}


def allowed(module: str, name: str) -> Global:
    """The global `module.name`, if it is one that a state_dict needs."""
    full = f"{module}.{name}"
    is_storage = name in STORAGES and module in ("torch", "torch.cuda", "torch.storage")
    if full not in CALLS and not is_storage:
        raise UserError(f"asks to call {shown(full)}, which is refused: no file of weights needs it")
    return Global(full)


def shown(text: str | bytes | int | Sequence[int]) -> str:
    """Text from the file, fit for one line of an error."""
    text = ascii(text[:81])[1:-1] if isinstance(text, str) else ascii(text)
    return text if len(text) <= 80 else text[:77] + "..."


def load(stream: Stream, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Reads one pickle and leaves the stream just behind it.

    Args:
      stream: positioned at the pickle.
      persistent: makes a value of a persistent id (torch's way to name a storage); None refuses them.

    Returns:
      Dicts, lists, tuples, strings, bytes, numbers, `Global`, `Tensor`, `Parameter`, and what `persistent` returns.

    Raises:
      UserError: whatever is wrong with it, without naming the file.
    """
    try:
        return Machine(stream, persistent).run()
    except IndexError:
        raise UserError("holds a broken pickle (its stack runs empty)") from None


class Machine:
    """The stack, the memo and the instructions, named as in the standard library's pickletools."""

    def __init__(self, stream: Stream, persistent: Callable[[Any], Any] | None):
        self.stream, self.persistent = stream, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = LARGEST

    def read(self, n: int) -> bytes:
        data = self.stream.read(min(n, self.left)) if n else b""
        self.left -= len(data)
        if len(data) != n:
            raise UserError("is truncated (its pickle ends too early)" if self.left else TOO_LARGE)
        return data

    def number(self, code: str) -> int:
        """An integer argument, by its `struct` code."""
        return struct.unpack("<" + code, self.read(struct.calcsize("<" + code)))[0]

    def line(self) -> str:
        line = self.stream.readline()
        self.left -= len(line)
        if self.left < 0:
            raise UserError(TOO_LARGE)
        if not line.endswith(b"\n"):
            raise UserError("is truncated (its pickle ends too early)")
        return text(line[:-1])

    def run(self) -> Any:
        for _ in range(LONGEST):
            if (op := self.read(1)) == b".":
                return self.pop()
            if op in ARGUMENTS:
                self.stack.append(ARGUMENTS[op](self))
            elif op in CONSTANTS:
                self.stack.append(CONSTANTS[op]())
            elif op in ACTIONS:
                ACTIONS[op](self)
            else:
                raise UserError(
                    f"holds a pickle with instruction {shown(op.decode('latin-1'))!r}, which no file of weights needs"
                )
        raise UserError(f"holds a pickle of more than {LONGEST} instructions")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise UserError("holds a broken pickle (a mark where a value should be)")
        return value

    def pop_mark(self) -> list[Any]:
        items = []
        while (value := self.stack.pop()) is not MARK:
            items.append(value)
        return items[::-1]

    def skip_frame(self) -> None:
        self.number("Q")  # the length of a frame matters to a reader that buffers

    def put(self, index: int) -> None:
        if index >= LONGEST:  # indices count up from 0; from a wider range they could be chosen to collide in the dict
            raise UserError(f"holds a broken pickle (it stores something as number {index})")
        value = self.pop()
        self.stack.append(value)
        self.memo[index] = value

    def get(self, index: int) -> Any:
        if index not in self.memo:
            raise UserError("holds a broken pickle (it recalls what it never stored)")
        return self.memo[index]

    def long(self, n: int) -> int:
        if n > 16:  # torch's magic number has 10 bytes, everything else at most 8
            raise UserError(f"holds an integer of {n} bytes")
        return int.from_bytes(self.read(n), "little", signed=True)

    def take(self, n: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(n)][::-1])

    def tuple_from_mark(self) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise UserError("holds a broken pickle (it appends to what is no list)")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise UserError("holds a broken pickle (it sets items of what is no dict)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | bytes | None):  # hashing a deep tuple overflows the C stack
                raise UserError(f"holds a dict with a key that is a {type(key).__name__}")
            # The hash of a number is no secret: a million keys can share one. That of text is.
            target[key if isinstance(key, str | bytes) else ascii(key).encode()] = value

    def stack_global(self) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise UserError("holds a broken pickle (a global without a name)")
        self.stack.append(allowed(module, name))

    def call(self) -> None:
        function, args = self.take(2)
        if not isinstance(function, Global) or function.name not in CALLS or not isinstance(args, tuple):
            what = function.name if isinstance(function, Global) else f"a {type(function).__name__}"
            raise UserError(f"asks to call {shown(what)}, which is refused")
        if len(args) > AXES:  # the same long tuple, unpacked a million times
            raise UserError(f"calls {function.name} with {len(args)} arguments")
        try:
            value = CALLS[function.name](*args)
        except TypeError:
            raise UserError(f"calls {function.name} with {len(args)} arguments") from None
        self.stack.append(value)

    def build(self) -> None:
        """Drops the state (a state_dict's `_metadata`, gradient flags, hooks), except the data of an old parameter."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Parameter):
            if target.data is None and isinstance(state, tuple) and state:
                target.data = state[0]
        elif not isinstance(target, dict):
            raise UserError(f"asks to set the state of a {type(target).__name__}, which is refused")

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise UserError("names a storage where none can be")
        self.stack.append(self.persistent(self.pop()))


def text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


CONSTANTS: dict[bytes, Callable[[], Any]] = {
    b"(": lambda: MARK,
    b"N": lambda: None,
    b"\x88": lambda: True,
    b"\x89": lambda: False,
    b")": tuple,
    b"]": list,
    b"}": dict,
}
ARGUMENTS: dict[bytes, Callable[[Machine], Any]] = {
    b"K": lambda m: m.number("B"),
    b"M": lambda m: m.number("H"),
    b"J": lambda m: m.number("i"),
    b"\x8a": lambda m: m.long(m.number("B")),
    b"\x8b": lambda m: m.long(m.number("I")),
    b"G": lambda m: struct.unpack(">d", m.read(8))[0],
    b"\x8c": lambda m: text(m.read(m.number("B"))),
    b"X": lambda m: text(m.read(m.number("I"))),
    b"\x8d": lambda m: text(m.read(m.number("Q"))),
    b"U": lambda m: text(m.read(m.number("B"))),
    b"T": lambda m: text(m.read(m.number("I"))),  # Python 2's strings
    b"C": lambda m: m.read(m.number("B")),
    b"B": lambda m: m.read(m.number("I")),
    b"c": lambda m: allowed(m.line(), m.line()),
    b"h": lambda m: m.get(m.number("B")),
    b"j": lambda m: m.get(m.number("I")),
    b"2": lambda m: m.stack[-1],
}
ACTIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m.read(1),
    b"\x95": Machine.skip_frame,
    b"0": Machine.pop,
    b"1": Machine.pop_mark,
    b"\x85": lambda m: m.stack.append(m.take(1)),
    b"\x86": lambda m: m.stack.append(m.take(2)),
    b"\x87": lambda m: m.stack.append(m.take(3)),
    b"t": Machine.tuple_from_mark,
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_mark()),
    b"s": lambda m: m.set_items(list(m.take(2))),
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"q": lambda m: m.put(m.number("B")),
    b"r": lambda m: m.put(m.number("I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"\x93": Machine.stack_global,
    b"R": Machine.call,
    b"\x81": Machine.call,
    b"b": Machine.build,
    b"Q": Machine.persistent_id,
}
