"""Every way to name, call or break something in a pickle."""

import numpy as np

from tests.weights.files import Call, Name, Persistent, pickled, rebuild, storage

BASE = np.arange(6, dtype=np.float32)
TENSOR = rebuild(storage(BASE, "0"), (6,), (1,))
COMMAND = "touch hacked"


def line(text: str) -> bytes:
    return b"S'" + text.encode() + b"'\n"


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


PICKLES = {
    "GLOBAL, REDUCE": b"cos\nsystem\n" + b"(" + line(COMMAND) + b"tR.",
    "GLOBAL alone": b"cos\nsystem\n.",
    "GLOBAL of a submodule": b"cos.path\nos.system\n(" + line(COMMAND) + b"tR.",
    "GLOBAL behind OrderedDict": b"ccollections\nOrderedDict.__init__.__globals__\n.",
    "STACK_GLOBAL, REDUCE": b"\x80\x04" + short("os") + short("system") + b"\x93" + short(COMMAND) + b"\x85R.",
    "STACK_GLOBAL from the memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x02ls\x85R.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "INST": b"(" + line(COMMAND) + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + line(COMMAND) + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + b"X\x02\x00\x00\x00ls\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n)}\x92.",
    "BUILD with __setstate__": b"ccollections\nOrderedDict\n)R}"
    + (short("__setstate__") + b"cos\nsystem\nsb" + short("ls") + b"b."),
    "BUILD of a global": b"ccollections\nOrderedDict\n}X\x08\x00\x00\x00fromkeyscos\nsystem\nsb.",
    "BUILD of slots": b"ccollections\nOrderedDict\n)RN}X\x05\x00\x00\x00itemscos\nsystem\ns\x86b.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pos.popen\n.",
    "BINPERSID of a call": b"cos\nsystem\n(" + line(COMMAND) + b"tRQ.",
    "BINPERSID of nothing": b"NQ.",
    "BINPERSID of a module": pickled(Persistent(("module", Name("os", "system"), "x", "y"))),
    "BINPERSID of a hostile storage": pickled(Persistent(("storage", Name("os", "system"), "0", "cpu", 6))),
    "eval": pickled(Call(Name("builtins", "eval"), ("__import__('os').system('touch hacked')",))),
    "exec of Python 2": pickled(Call(Name("__builtin__", "exec"), ("import os",))),
    "getattr": pickled(Call(Name("builtins", "getattr"), (Name("os", "path"), "os"))),
    "open for writing": pickled(Call(Name("io", "open"), ("hacked", "w"))),
    "import": pickled(Call(Name("importlib", "import_module"), ("antigravity",))),
    "a socket": pickled(Call(Name("socket", "create_connection"), (("localhost", 1),))),
    "torch.load": pickled(Call(Name("torch", "load"), ("other.pth",))),
    "torch.hub": pickled(Call(Name("torch.hub", "load"), ("a/b", "c"))),
    "numpy": pickled(Call(Name("numpy.core.multiarray", "_reconstruct"), (Name("numpy", "ndarray"), (0,), "b"))),
    "numpy.load": pickled(Call(Name("numpy", "load"), ("/etc/passwd", None, True))),
    "a storage's constructor": pickled(Call(Name("torch", "FloatStorage"), (2**40,))),
    "a module by name": pickled({"w": Name("torch.nn.modules.linear", "Linear")}),
    "OrderedDict of pairs": pickled(Call(Name("collections", "OrderedDict"), ([("w", 1)],))),
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "BYTEARRAY8 of nothing": b"\x80\x05\x96" + b"\xff" * 8 + b".",
    "a set": b"\x80\x04\x8f(K\x01\x90.",
    "a frozenset": b"\x80\x04(K\x01\x91.",
    "LONG of Python 0": b"L" + b"9" * 5000 + b"L\n.",
    "INT as text": b"I1" + b"_0" * 3000 + b"\n.",
    "LONG4 of 2 GB": b"\x8b\xff\xff\xff\x7f.",
    "LONG4 below 0": b"\x8b\xff\xff\xff\xff.",
    "BINUNICODE8 of everything": b"\x8d" + b"\xff" * 8 + b".",
    "BINUNICODE of 4 GB": b"X\xff\xff\xff\xffw.",
    "text that is no text": b"}X\x04\x00\x00\x00\xff\xfe\xed\xa0K\x01s.",
    "LONG_BINPUT of 2 ** 31": b"}r\xff\xff\xff\x7f.",
    "a memo that is empty": b"j\xff\xff\xff\xff.",
    "an empty stack": b"..",
    "marks alone": b"((((2222t.",
    "POP_MARK": b"]((1111.",
    "a key that is a tree": b"}" + b")" + b"\x85" * 3000 + b"Ns.",
    "a dict in itself": b"}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "a list in itself": b"]q\x00h\x00a.",
    "a parameter in itself": b"}X\x01\x00\x00\x00wctorch.nn.parameter\nParameter\n)Rq\x00h\x00\x85bs.",
    "2 ** 40 leaves": b")" + b"2\x86" * 40 + b".",
    "lists in lists": b"]" * 3000 + b"a" * 2999 + b".",
    "names that are numbers": pickled({i: TENSOR for i in range(3)}),
    "a name of control characters": pickled({"\x1b[2J\r\nw": TENSOR}),
    "a name of 3,000 modules": pickled({"a." * 3000 + "w": TENSOR}),
    "a tensor as a shape": pickled({"w": rebuild(storage(BASE, "0"), (TENSOR,), (1,))}),
    "a shape of truths": pickled({"w": rebuild(storage(BASE, "0"), (True,), (True,))}),
    "text as a storage": pickled(Persistent(("storage", Name("torch", "FloatStorage"), None, "cpu", 6))),
    "a storage of text": pickled(Persistent(("storage", Name("torch", "StringStorage"), "0", "cpu", 6))),
    "a storage in two ways": pickled(
        [Persistent(storage(BASE, "0")), Persistent(storage(BASE.astype(np.int64), "0"))],
    ),
    "a storage by a path": pickled({"w": rebuild(storage(BASE, "../../../../etc/passwd"), (6,), (1,))}),
    "a storage that is absent": pickled({"w": rebuild(storage(BASE, "1"), (6,), (1,))}),
}
