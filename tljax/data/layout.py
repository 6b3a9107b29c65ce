"""What the folders of a tree are: splits or classes, by names that must agree; where they do not, a question.

A name alone decides nothing: a class may be called `train`. Folders are splits where at least two different ones are
named beside each other, in one manner, and hold class folders, or where each class folder holds them.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Self

from tljax.core.errors import UserError, counted, shorten, shown

FIELDS = {"train": "train", "val": "validation", "test": "test"}
"""The splits, and the fields under `data` that name their folders; `data.val` is a share."""

_WORDS = {
    "train": "train trains training trained trainval trn trng learn learning",
    "val": "val vals valid validate validation validating vld dev devel develop development eval evaluate evaluation "
           "evaluating tune tuning",
    "test": "test tests testing tested tst holdout holdouts heldout",
}  # fmt: skip
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words.split()}
# As likely a language or a country: splits only where nothing else lies beside them.
_SHORT = {"tr": "train", "va": "val", "vl": "val", "te": "test", "ts": "test"}
# What says nothing of which split, or which class, it is.
_PLAIN_WORDS = """set sets data dataset datasets image images img imgs pic pics picture pictures photo photos folder
    folders dir split splits sample samples part the of for"""
_PLAIN = frozenset(_PLAIN_WORDS.split())
_NUMBERED = re.compile(r"(?:cv|folds?|parts?|sets?|splits?)[ _.-]*\d+", re.IGNORECASE)  # folders of a cross-validation
_GLUED = re.compile(r"(.+?)(?:sets?|data|datasets?|images?|imgs?|splits?)")
_UNLABELED = frozenset(("unlabeled", "unlabelled", "unlabel", "unannotated", "nolabel", "nolabels", "no label",
                         "no labels", "not labeled", "not labelled", "without label", "without labels"))  # fmt: skip
_LABELED = frozenset(("labeled", "labelled", "annotated", "with label", "with labels"))


@dataclasses.dataclass(frozen=True)
class Named:
    """A name that has a split in it; `rest` are its words that say something else, `short` such names as 'tr'."""

    split: str
    rest: tuple[str, ...]
    short: bool


def split_in(name: str) -> Named | None:
    """The split that a folder's name has in it, whatever its case, separators, numbers and words such as 'set'."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    words = re.sub(r"\b(hold|held)[\W_]+out\b", r"\1out", spaced.casefold())
    found, rest, short = [], [], False
    for word in re.findall(r"[^\W\d_]+", words):
        glued = _GLUED.fullmatch(word)
        split = _SPLIT_OF.get(word) or (glued and _SPLIT_OF.get(glued[1])) or _SHORT.get(word)
        if split:
            found.append(split)
            short = short or word in _SHORT
        elif word not in _PLAIN:
            rest.append(word)
    if found[:2] == ["train", "val"] and len(found) == 2:  # the usual name of both together
        found = ["train"]
    return Named(found[0], tuple(rest), short) if len(set(found)) == 1 else None


def _is_plain(name: str) -> bool:
    return set(re.findall(r"[^\W\d_]+", name.casefold()) or [name]) <= _PLAIN


def says_no_class(name: str) -> bool:
    """Whether a name says a split, or no more than that there are images."""
    return is_split_name(name) or _is_plain(name)


def _says(name: str, words: frozenset[str]) -> bool:
    """Whether a name says one of these, whatever its case, separators, numbers and words such as 'images'."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name)).casefold()
    return " ".join(word for word in re.findall(r"[^\W\d_]+", spaced) if word not in _PLAIN) in words


def is_split_name(name: str) -> bool:
    """Whether a name says a split and nothing else."""
    named = split_in(name)
    return named is not None and not named.rest and not named.short


@dataclasses.dataclass
class Folder:
    """The images below a folder: how many lie in it, and its folders."""

    images: int = 0
    folders: dict[str, Self] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        root = cls()
        for name in names:
            here = root
            for part in name.split("/")[:-1]:
                here = here.folders.setdefault(part, cls())
            here.images += 1
        return root

    def at(self, path: str) -> Self | None:
        here: Self | None = self
        for part in path.split("/") if path != "." else ():
            here = here and here.folders.get(part)
        return here

    @property
    def total(self) -> int:
        return self.images + sum(folder.total for folder in self.folders.values())


@dataclasses.dataclass(frozen=True)
class Layout:
    """How names of images are read.

    Attributes:
      places: folder -> its split, if it has one, and, where the folder lies within a class, that class. Empty: the
        first folders are classes, and there are no splits.
      rest: the split of what lies in none of them; None where that is left out.
      notes: what was decided that may be meant otherwise, in words.
    """

    places: Mapping[str, tuple[str | None, str]] = dataclasses.field(default_factory=dict)
    rest: str | None = None
    notes: tuple[str, ...] = ()

    def read(self, name: str) -> tuple[str | None, str, str] | None:
        """Split, class (empty: its first folder says it) and the rest of a name; None where it is left out."""
        parts = name.split("/")
        for k in range(len(parts) - 1, 0, -1):
            if place := self.places.get("/".join(parts[:k])):
                return *place, "/".join(parts[k:])
        if self.places and self.rest is None:
            return None
        return self.rest, "", name


def understand(root: Folder, *, path: str, by_folder: bool, named: Mapping[str, str]) -> Layout:
    """Reads a tree.

    Args:
      root: all images.
      path: what the user calls it, for messages.
      by_folder: whether folders are classes; else names of files say the class, and folders at most the split.
      named: folder -> split, where the user named them; '.' is all of the tree but the others.

    Raises:
      UserError: a question, with the fields that answer it.
    """
    if named:
        return _as_named(root, path=path, by_folder=by_folder, named=named)
    return _Reader(path, by_folder).read(root)


def understand_classes(root: Folder, classes: Container[str]) -> Layout | None:
    """Reads a tree by the names of classes that are known, where one class or one split will do.

    What lies beside a folder of a known class is a class, too, known or not. Of the folders around it the last that is
    named as a split says which.

    Args:
      root: all images.
      classes: the names that are known.

    Returns:
      The layout; None where no folder has such a name.
    """
    places: dict[str, tuple[str | None, str]] = {}
    pending: list[tuple[str, str | None, Folder]] = [("", None, root)]
    while pending:
        prefix, split, here = pending.pop()
        if not any(name in classes for name in here.folders):
            for name, folder in here.folders.items():
                named = split_in(name)
                pending.append((f"{prefix}{name}/", named.split if named else split, folder))
            continue
        places[prefix.rstrip("/")] = split, ""
    if not places:
        return None
    if "" in places:  # the first folders
        return Layout()
    read = Layout(places)
    left = collections.Counter[str]()
    for folder, count in _counts(root):
        if read.read(f"{folder}/.") is None:
            left[folder or "."] += count
    told = [f"{name!r} ({counted(count, 'image')})" for name, count in sorted(left.items())]
    return Layout(places, None, (f"left out, since they are in no folder of a class: {_few(told)}",) if told else ())


def _counts(root: Folder) -> Iterator[tuple[str, int]]:
    """The folders that have images in them, and how many."""
    pending = [("", root)]
    while pending:
        place, here = pending.pop()
        if here.images:
            yield place, here.images
        pending += [(f"{place}/{name}" if place else name, folder) for name, folder in here.folders.items()]


def _as_named(root: Folder, *, path: str, by_folder: bool, named: Mapping[str, str]) -> Layout:
    places = {folder: (split, "") for folder, split in named.items() if folder != "."}
    if by_folder:
        places = {_inner(root, folder): place for folder, place in places.items()}
        for folder, (split, _) in places.items():
            if (here := root.at(folder)) and not here.folders:
                raise UserError(
                    f"data.{FIELDS[split]} names {folder!r} of {path!r}, which has "
                    f"{counted(here.total, 'image')} and no class "
                    "folders; name the folder that has a folder of each class"
                )
    if "." in named:
        rest = named["."]
        return Layout(places, rest) if places else Layout()  # the root alone: classes, and no splits
    told, notes = set(named.values()), []
    names = sorted(set(root.folders) - {folder.split("/")[0] for folder in named})
    for name in names:  # those not named are what their names say
        as_split = split_in(name)
        if as_split and not as_split.rest and not as_split.short and as_split.split not in told:
            places[_inner(root, name) if by_folder else name] = as_split.split, ""
            notes.append(f"{name!r} is taken for {as_split.split}")
    if "train" in {split for split, _ in places.values()}:
        left = [name for name in names if not any(place.split("/")[0] == name for place in places)]
        notes += _left_out(root, left)
        return Layout(places, None, tuple(notes))
    return Layout(places, "train", tuple(notes))


def _left_out(root: Folder, names: Iterable[str]) -> list[str]:
    names = list(names)
    told = [f"{name!r} ({counted(root.folders[name].total, 'image')})" for name in names]
    hint = "".join(f"; data.unlabeled={shown(name)} takes it" for name in names if _says(name, _UNLABELED))
    return [f"left out, since they are in no split: {_few(told)}{hint}"] if told else []


def _inner(root: Folder, place: str) -> str:
    """Where a split's class folders lie: training_set/training_set, seg_train/seg_train, train/images."""
    here = root.at(place)
    while here and not here.images and len(here.folders) == 1:
        (name, below), own = next(iter(here.folders.items())), place.split("/")[-1]
        as_split, of = split_in(name), split_in(own)
        same = as_split is not None and of is not None and as_split.split == of.split
        if not (same or name == own or _is_plain(name)):
            break
        place, here = f"{place}/{name}", below
    return place


class _Reader:
    """The rules, and what a question is about."""

    def __init__(self, path: str, by_folder: bool):
        self.path, self.by_folder = path, by_folder

    def read(self, root: Folder) -> Layout:
        if layout := self.splits(root, ""):
            return layout
        prefix, here = "", root  # a folder around all of it
        while len(here.folders) == 1 and not _says(prefix[:-1].rpartition("/")[2], _LABELED):
            name, here = next(iter(here.folders.items()))
            prefix += f"{name}/"
            if layout := self.splits(here, prefix, wrapped=True):
                return layout
        if self.by_folder:
            self.ask_of_unlabeled(here, prefix)
            if _says(prefix[:-1].rpartition("/")[2], _LABELED) and here.folders:
                return Layout({prefix[:-1]: (None, "")})
        if not self.by_folder:
            looks = self.nested(root) or sorted(name for name in root.folders if is_split_name(name))
            return Layout(
                notes=(f"{_few(map(repr, looks))}: taken for no split; {_say(looks)} if meant",) if looks else ()
            )
        return self.within_classes(root) or Layout(notes=tuple(self.doubts(root)))

    def ask_of_unlabeled(self, here: Folder, prefix: str) -> None:
        """Raises UserError for folders that say that they have labels, or none, beside others."""
        tops = here.folders
        without = sorted(name for name in tops if _says(name, _UNLABELED))
        of_labels = sorted(name for name, folder in tops.items() if _says(name, _LABELED) and folder.folders)
        if not (without or of_labels) or len(tops) == 1:
            return
        rest = without or sorted(set(tops) - set(of_labels))
        say = f"data.unlabeled={','.join(shown(prefix + name) for name in rest)}"
        of_labels += [name for name, folder in tops.items() if folder.folders and is_split_name(name)]
        if of_labels:
            say += f" data.train={shown(prefix + of_labels[0])}"
        raise UserError(
            f"{self.path!r} has {_few(prefix + name for name in sorted(tops))}; say {say} if the images of "
            f"{_few(map(repr, rest))} have no labels, or data.train=. if the first folders are the classes"
        )

    def nested(self, root: Folder) -> list[str]:
        """Folders anywhere that would be splits, were they the first ones."""
        pending = [("", root)]
        while pending:
            prefix, here = pending.pop()
            try:
                if prefix and self.splits(here, prefix, wrapped=True):
                    return [prefix + name for name in sorted(self.group(here))]
            except UserError:  # there is something to ask even there
                return [prefix + name for name in sorted(here.folders) if split_in(name)]
            pending += [(f"{prefix}{name}/", folder) for name, folder in here.folders.items()]
        return []

    def splits(self, here: Folder, prefix: str, *, wrapped: bool = False) -> Layout | None:
        """Folders beside each other that are splits; `wrapped`: only what is beyond doubt."""
        group = self.group(here)
        if not group:
            return None
        places = {name: _inner(here, name) if self.by_folder else name for name in group}
        sets = collections.Counter(group.values())
        deep = {name for name in group if here.at(places[name]).folders}  # type: ignore[union-attr]
        if wrapped and (len(sets) < 2 or "train" not in sets or (self.by_folder and not deep)):
            return None
        names, others = sorted(group), sorted(set(here.folders) - set(group))
        notes, say = [], _say([prefix + name for name in names])
        if sets == {"train": 1, "val": 2}:  # training, validation, evaluation
            last = [name for name in names if re.search("eval", name, re.IGNORECASE)]
            if len(last) == 1:
                group = group | {last[0]: "test"}
                sets, notes = collections.Counter(group.values()), [f"{last[0]!r} is taken for test"]
        if "train" not in sets:
            if others and len(sets) < 2:
                return None
            raise UserError(f"{self.path!r} has {_few(names)} but no train; add train/CLASS/..., or {say}")
        if max(sets.values()) > 1:
            raise UserError(f"{self.path!r} has two folders for one split among {_few(names, 9)}; keep one of each, "
                            f"or {say}")  # fmt: skip
        training = next(name for name, split in group.items() if split == "train")
        if self.by_folder and training not in deep:
            if not others and not deep:  # told as images that are in no class folders
                return Layout({prefix + place: (group[name], "") for name, place in places.items()})
            raise UserError(
                f"{self.path!r} has {_few(names)}, but no class folders in {training!r}; put its images in "
                f"{shown(training)}/CLASS/..., or say data.train=. if all its folders are classes"
            )
        notes += [
            f"{name!r} has no class folders: {counted(here.folders[name].total, 'image')} without labels left out"
            for name in names if self.by_folder and name not in deep
        ]  # fmt: skip
        classes = set(here.at(places[training]).folders)  # type: ignore[union-attr]
        for name in others:
            if self.by_folder and len(classes) > 1 and classes <= set(here.at(_inner(here, name)).folders):  # type: ignore[union-attr]
                raise UserError(
                    f"{self.path!r} has {_few(names)}, and {name!r} with the same folders in it; {say}, with "
                    f"{name!r} in one of them (A,B are two folders) or in none, or data.train=. if all are classes"
                )
        notes += _left_out(here, others)
        return Layout({prefix + place: (group[name], "") for name, place in places.items()}, None, tuple(notes))

    def group(self, here: Folder) -> dict[str, str]:
        """{folder: split}: two different ones at least that are named in one manner, or splits alone."""
        found = {name: named for name in here.folders if (named := split_in(name))}
        if len(found) < len(here.folders):
            found = {name: named for name, named in found.items() if not named.short}
        manners: dict[tuple[str, ...], dict[str, str]] = collections.defaultdict(dict)
        for name, named in found.items():
            manners[named.rest][name] = named.split
        several = {rest: names for rest, names in manners.items() if len(set(names.values())) > 1}
        if len(several) > 1 and () not in several and self.by_folder:
            names = sorted(name for group in several.values() for name in group)
            raise UserError(
                f"{self.path!r} has {_few(names)}: class and split in one name; put them in train/CLASS/..., "
                "test/CLASS/..., or say data.train=. if all are classes"
            )
        if several:
            return several.get((), next(iter(several.values())))
        plain = manners.get((), {})
        return plain if len(plain) == len(here.folders) else {}

    def within_classes(self, root: Folder) -> Layout | None:
        """CLASS/train, CLASS/test."""
        inner = {name: self.inside(folder) for name, folder in root.folders.items()}
        split = sorted(name for name, places in inner.items() if len(set(places.values())) > 1)
        if not split:
            return None
        first = split[0]
        of_first = _few(sorted(inner[first]))
        below = [{name for part in inner[cls] for name in root.folders[cls].folders[part].folders} for cls in split]
        common = set.intersection(*below)
        if len(common) > 1 and (len(split) > 1 or len(root.folders) > 1):
            raise UserError(
                f"{self.path!r} has {_few(map(repr, split))}, with {of_first} in it, and these have "
                f"{_few(sorted(common))}; is folder:{self.path.rstrip('/')}/{shown(first)} meant? "
                f"Else {_say(f'{first}/{part}' for part in sorted(inner[first]))}"
            )
        without = sorted(name for name, places in inner.items() if not places)
        if without:
            raise UserError(
                f"{self.path!r} has {of_first} in {first!r}, and none of them in {without[0]!r}; give each class the "
                "same, or say data.train=. if they are parts of classes"
            )
        places, notes = {}, []
        for cls, parts in sorted(inner.items()):
            for part, which in parts.items():
                places[f"{cls}/{part}"] = which, cls
            left = root.folders[cls].total - sum(root.folders[cls].folders[part].total for part in parts)
            if left:
                notes.append(f"{counted(left, 'image')} of {cls!r} left out, in no split of it")
        return Layout(places, None, tuple(notes))

    def inside(self, cls: Folder) -> dict[str, str]:
        named = {name: found for name in cls.folders if (found := split_in(name)) and not found.short}
        rests = collections.Counter(found.rest for found in named.values())
        common = max(rests, key=lambda rest: (rests[rest], rest == ()), default=())
        return {name: found.split for name, found in named.items() if found.rest == common}

    def doubts(self, root: Folder) -> Iterator[str]:
        """Of folders that are taken for classes; raises UserError where another reading is as likely."""
        tops = root.folders
        looks = [name for name in sorted(tops) if is_split_name(name)]
        inside = {name: set(folder.folders) for name, folder in tops.items()}
        alike = (
            len(tops) > 1 and len(set(map(frozenset, inside.values()))) == 1 and len(next(iter(inside.values()))) > 1
        )
        maybe = sorted(name for name in tops if split_in(name))
        if nested := self.nested(root):
            raise UserError(
                f"{self.path!r} has splits within a folder, {_few(nested)}; is "
                f"folder:{self.path.rstrip('/')}/{shown(nested[0].rpartition('/')[0])} meant? Else {_say(nested)}, or "
                "data.train=. if the first folders are classes"
            )
        numbered = all(_NUMBERED.fullmatch(name) for name in tops)
        if alike and (numbered or len(maybe) == len(tops) or (maybe and len(tops) == 2)):
            raise UserError(
                f"the folders {' and '.join(map(repr, sorted(tops)))} of {self.path!r} have the same folders in them "
                f"({_few(sorted(next(iter(inside.values()))))}); {_say(sorted(tops))} if they are splits, data.train=. "
                "if they are classes"
            )
        deeper = {name: _inner(root, name) for name in sorted(tops)}
        below = {name: root.at(place).folders for name, place in deeper.items()}  # type: ignore[union-attr]
        around = [
            name for name, place in deeper.items()
            if len(below[name]) > 1 and (place != name or (_is_plain(name) and not tops[name].images))
        ]  # fmt: skip
        if around and len(around) < len(tops):
            place = deeper[around[0]]
            raise UserError(
                f"{self.path!r} has {place!r} with {_few(sorted(below[around[0]]))} in it; is "
                f"folder:{self.path.rstrip('/')}/{shown(place)} meant? Say data.train=. if "
                f"{_few(map(repr, sorted(tops)))} are the classes"
            )
        for name in looks:
            both = sorted(inside[name] & (set(tops) - {name}))
            if both:
                which = split_in(name).split  # type: ignore[union-attr]
                raise UserError(
                    f"{self.path!r} has {name!r} with {_few(map(repr, both))} in it, which lie beside it, too; say "
                    f"data.{FIELDS[which]}={shown(name)}" + ("" if which == "train" else " (the rest is then train)")
                    + ", or data.train=. if all are classes"
                )  # fmt: skip
            lone = len(inside[name]) > 1 and not any(inside[other] for other in tops if other != name)
            if lone:
                raise UserError(
                    f"{self.path!r} has {name!r} with class folders in it, and {_few(sorted(set(tops) - {name}))} "
                    f"without; {_say([name])} to leave those out, or data.train=. if all are classes"
                )
        if looks:
            else_ = f"; {_say(looks)} if not" if any(inside[name] for name in looks) else ""
            yield f"taken for {'a class' if len(looks) == 1 else 'classes'}: {_few(map(repr, looks))}{else_}"
        if alike:
            same = _few(map(repr, sorted(next(iter(inside.values())))))
            yield (f"the {len(tops)} classes have the same folders in them, {same}; if these are the classes, "
                   f"{_say(sorted(tops))}")  # fmt: skip
        parts = sorted({part for folder in inside.values() for part in folder if is_split_name(part)})
        if parts:
            yield f"{_few(map(repr, parts))} within classes are taken for parts of these, not for splits"


def _say(names: Iterable[str]) -> str:
    """How to name the splits, by what there is."""
    given: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in names:
        if named := split_in(name.split("/")[-1]):
            given[named.split].append(shown(name))
    words = {split: ",".join(folders) or "FOLDER" for split, folders in given.items() if folders or split != "val"}
    return "say " + " ".join(f"data.{FIELDS[split]}={folder}" for split, folder in words.items())


def _few(words: Iterable[str], most: int = 4) -> str:
    return shorten([shown(word) for word in words], most)
