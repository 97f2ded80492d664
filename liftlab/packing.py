"""Many examples in one row, as a tree of prefixes: what several of them begin with stands there once.

In a causal model what a token becomes depends on the tokens before it alone. So a beginning that examples of one
document share, such as a chat template's opening, is computed once for all of them, and its gradient is the sum of
theirs. A row holds the examples of one document; `packed_attention` lets each token see its own beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from liftlab.examples import IGNORED, Example
from liftlab.stacked_products import Groups

MASKED_TOKENS = 128  # rows up to this length are not written out: what a mask throws away there costs less
GROUP_TOKENS = 64  # about what one more group of rows costs beside its tokens on a CPU, measured with micro

Weight = Callable[[Example], float]


class _OnDevice:
    """Tensors that go to a device together, their owner's other fields unchanged."""

    def to(self, device: torch.device):
        """On `device`; a copy to a GPU does not wait for it."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: _moved(value, device) for name, value in held.items()}
        return replace(self, **moved)


def _moved(value, device: torch.device):
    if isinstance(value, torch.Tensor) and device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device) if isinstance(value, torch.Tensor | _OnDevice) else value


@dataclass(frozen=True)
class Written(_OnDevice):
    """The examples of all rows written out, each for itself, those of one length together.

    `order`: the place of each token, `shapes` (examples, length) one after the other. `back`: where each place stands
    in `order` for the first time; `again`: where one that several examples share stands another time.
    """

    order: torch.Tensor
    back: torch.Tensor
    again: torch.Tensor
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Packed(_OnDevice):
    """The tokens of one forward pass, (1, tokens), row after row; a row has the examples of one document.

    `documents`: whose row stands first, second, ...; those without examples have none. `groups`: (rows, tokens of each,
    padding with them), in that order. `counts`: how many of its row's examples have a token there, 0 for padding.
    `ends`: behind each token stand those that follow it in some example, and nothing else up to that place. `owners`:
    the document of each token. `longest`: tokens of the longest example. `written` is None where rows are short.
    `places` of the tokens whose successor is to be predicted; of each: its label, its example's weight, its document.
    `kept` are those places, each once, and so many others that all rows of a group have as many: `kept_groups`.
    `tokens` counts those of all examples; `weight` sums `weights`.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor
    ends: torch.Tensor
    owners: torch.Tensor
    documents: tuple[int, ...]
    groups: Groups
    longest: int
    written: Written | None
    places: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    scored_owners: torch.Tensor
    kept: torch.Tensor
    kept_groups: Groups
    tokens: int
    weight: float


def padded_length(length: int) -> int:
    """The length, in tokens, that an example is written out at: 16 lengths from each power of two to the next."""
    step = max(1, (1 << (length - 1).bit_length() - 1) // 16) if length > 1 else 1
    return -(-length // step) * step


def tree_tokens(examples: Sequence[Example]) -> int:
    """Tokens of a row of `examples`: each beginning that several of them share counts once."""
    return len(_row(examples).ids)


def pack(
    rows: Sequence[Sequence[Example]], weights_of: Sequence[Weight], pad: int, *, masked_tokens: float = MASKED_TOKENS
) -> Packed:
    """Each document's examples in a row, `pad` the token id of padding; `weights_of[document]` gives the weight of an
    example's scored tokens. Rows of at most `masked_tokens` are not written out.

    A document may have no example. ValueError where none has.
    """
    trees = sorted((_row(row, of) for of, row in enumerate(rows) if row), key=lambda tree: -len(tree.ids))
    if not trees:
        raise ValueError("no example was given to pack: give at least one")
    groups, begin = _groups([len(tree.ids) for tree in trees]), 0
    if len(groups) == 1:
        trees.sort(key=lambda tree: tree.document)  # so their adapters can be used where they stand
    for tree, tokens in zip(trees, [tokens for count, tokens in groups for _ in range(count)], strict=True):
        tree.close(begin, tokens, pad)
        begin += tokens
    scored = [found for tree in trees for found in tree.scored(weights_of[tree.document])]
    places, labels, weights, owners = (list(column) for column in zip(*scored, strict=True)) if scored else ([],) * 4
    kept, kept_groups = _kept(groups, set(places))
    return Packed(
        *(_whole([[value for tree in trees for value in getattr(tree, name)]])
          for name in ("ids", "positions", "counts", "ends", "owners")),
        tuple(tree.document for tree in trees), groups, max(len(path) for tree in trees for path in tree.paths),
        _written(trees, begin) if groups[0][1] > masked_tokens else None,
        _whole(places), _whole(labels), torch.tensor(weights), _whole(owners), _whole(kept), kept_groups,
        tokens=sum(len(path) for tree in trees for path in tree.paths), weight=sum(weights),
    )  # fmt: skip


def _whole(values: Sequence) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def _groups(lengths: Sequence[int]) -> Groups:
    """Rows of these falling lengths (tokens) in the groups, padded to one length each, that cost least in all."""
    best: list[tuple[int, Groups]] = [(0, ())]  # for the first rows: tokens, and the groups they are in
    for end in range(1, len(lengths) + 1):
        ways = ((best[at][0] + (end - at) * lengths[at] + GROUP_TOKENS, at) for at in range(end))
        tokens, at = min(ways)
        best.append((tokens, (*best[at][1], (end - at, lengths[at]))))
    return best[-1][1]


def _kept(groups: Groups, scored: set[int]) -> tuple[list[int], Groups]:
    """The places that `Packed.kept` holds, and `kept_groups`."""
    kept, kept_groups, begin = [], [], 0
    for count, tokens in groups:
        rows = [range(at, at + tokens) for at in range(begin, begin + count * tokens, tokens)]
        most = max(1, *(sum(place in scored for place in row) for row in rows))
        kept += [place for row in rows for place in sorted(row, key=lambda place: place not in scored)[:most]]
        kept_groups.append((count, most))
        begin += count * tokens
    return kept, tuple(kept_groups)


@dataclass
class _Row:
    """The tree of one document's examples, sorted by their tokens. `paths`: where the tokens of each stand, of which
    the first `shared` stood there before it. Places count from the row's begin until it is closed.
    """

    document: int
    examples: list[Example]
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int]) -> None:
        last = self.paths[-1] if self.paths else []
        alike = (at for at, (place, token) in enumerate(zip(last, ids, strict=False)) if self.ids[place] != token)
        shared = next(alike, min(len(last), len(ids)))
        self._end(last[shared:])
        path = [*last[:shared], *range(len(self.ids), len(self.ids) + len(ids) - shared)]
        self.ids += ids[shared:]
        self.positions += range(shared, len(ids))
        self.counts += [0] * (len(ids) - shared)
        self.ends += [0] * (len(ids) - shared)
        for place in path:
            self.counts[place] += 1
        self.paths.append(path)
        self.shared.append(shared)

    def close(self, begin: int, tokens: int, pad: int) -> None:
        """Place the row at `begin`, and fill it up to `tokens` with padding, of which each stands alone."""
        self._end(self.paths[-1])
        missing = range(len(self.ids), tokens)
        self.ends = [begin + end for end in self.ends] + [begin + at + 1 for at in missing]
        self.paths = [[begin + at for at in path] for path in self.paths]
        self.alone = [begin + at for at in missing]
        self.ids += [pad] * len(missing)
        self.positions += [0] * len(missing)
        self.counts += [0] * len(missing)
        self.owners = [self.document] * tokens

    def scored(self, weight: Weight) -> Iterator[tuple[int, int, float, int]]:
        """Place, label, weight and document of each scored token."""
        for path, example in zip(self.paths, self.examples, strict=True):
            for at, label in enumerate(example.labels[1:]):
                if label != IGNORED:
                    yield path[at], label, weight(example), self.document

    def _end(self, places: Sequence[int]) -> None:
        for place in places:
            self.ends[place] = len(self.ids)


def _row(examples: Sequence[Example], document: int = 0) -> _Row:
    row = _Row(document, sorted(examples, key=lambda example: example.ids))
    for example in row.examples:
        row.add(example.ids)
    return row


def _written(trees: Sequence[_Row], tokens: int) -> Written:
    """The closed rows, of `tokens` tokens in all, written out; padding as sequences of a token."""
    out: dict[int, list[tuple[list[int], int]]] = {}  # length to (places, how many of them are shared)
    for tree in trees:
        for path, shared in zip(tree.paths, tree.shared, strict=True):
            out.setdefault(padded_length(len(path)), []).append((path, shared))
        out.setdefault(1, []).extend(([at], 0) for at in tree.alone)
    order, again, back, shapes = [], [], [0] * tokens, []
    for length, sequences in sorted(out.items()):
        for places, shared in sequences:
            begin = len(order)
            again += range(begin, begin + shared)
            for at, place in enumerate(places[shared:], begin + shared):
                back[place] = at
            order += [*places, *places[-1:] * (length - len(places))]
        shapes += [(len(sequences), length)] if sequences else []
    return Written(_whole(order), _whole(back), _whole(again), tuple(shapes))
