"""The search behind a split: patients to sides so that the numbers can be met, then images so that shares agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

Needs = tuple[int, int, int]
Score = tuple[int, float]

_STEPS_PER_IMAGE = 100
_MOST_STEPS = 6_000
_MOST_DEAD_ENDS = 200_000
# Weight of having few patients on a side, against squared Hellinger distances of class shares.
_CROWDING = 0.02


@dataclass(frozen=True)
class Candidate:
    """An image that may be chosen: ``pixels`` (C,) a class; ``side`` 0, 1, 2 where it is given, else ``None``."""

    id: str
    patient: str | None
    pixels: tuple[int, ...]
    side: int | None

    @property
    def group(self) -> tuple[str, str]:
        """Return what must stay together: the patient, or the image alone."""
        return ("image", self.id) if self.patient is None else ("patient", self.patient)


def assign(pool: Sequence[Candidate], needs: Needs, seed: int) -> dict[tuple[str, str], int] | None:
    """Return groups by side such that each side has at least its number of images, or ``None`` where there is no way.

    Groups that no side needs are left out. A seeded depth-first search over groups, the largest first, that remembers
    dead ends; given sides are kept. An exhausted memory of dead ends counts as no way.
    """
    sizes: dict[tuple[str, str], int] = {}
    given: dict[tuple[str, str], int] = {}
    for candidate in pool:
        sizes[candidate.group] = sizes.get(candidate.group, 0) + 1
        if candidate.side is not None and given.setdefault(candidate.group, candidate.side) != candidate.side:
            return None
    if given:
        return given
    random = Random(seed)
    groups = list(sizes)
    random.shuffle(groups)
    groups.sort(key=lambda group: -sizes[group])
    left = [0] * (len(groups) + 1)  # images in groups[k:]
    for k in range(len(groups) - 1, -1, -1):
        left[k] = left[k + 1] + sizes[groups[k]]
    dead: set[tuple[int, Needs]] = set()
    path: list[tuple[Needs, list[int], int]] = []  # (needs before, sides still to try, side taken)
    missing = needs
    while any(missing):
        k = len(path)
        options = [] if sum(missing) > left[k] or (k, missing) in dead else _by_need(random, missing)
        while not options:
            dead.add((k, missing))
            if not path or len(dead) > _MOST_DEAD_ENDS:
                return None
            missing, options, _ = path.pop()
            k -= 1
        side = options.pop()
        path.append((missing, options, side))
        after = max(0, missing[side] - sizes[groups[k]])
        missing = (
            after if side == 0 else missing[0],
            after if side == 1 else missing[1],
            after if side == 2 else missing[2],
        )
    return {groups[k]: side for k, (_, _, side) in enumerate(path)}


def search(pool: Sequence[Candidate], needs: Needs, seed: int, *, restarts: int) -> tuple[list[int], ...]:
    """Return the chosen indices of ``pool`` for each side: the best end of ``restarts`` seeded local searches.

    The score of a choice is, first, how many classes a side lacks that it could have (training counted heavily), then
    the sum over sides of the squared Hellinger distance between its class shares and the pool's, and of how crowded it
    is with few patients. Only arithmetic that every machine rounds alike decides.
    """
    best: _Choice | None = None
    for restart in range(restarts):
        random = Random(seed * restarts + restart)
        groups = assign(pool, needs, random.randrange(2**32))
        if groups is None:
            continue
        choice = _Choice(pool, needs, groups, random)
        steps = min(_MOST_STEPS, _STEPS_PER_IMAGE * sum(needs))
        for _ in range(steps):
            choice.try_swap()
        if best is None or choice.score() < best.score():
            best = choice
    if best is None:
        raise ValueError("search needs numbers that assign can meet")
    return tuple(best.chosen)


class _Choice:
    """A choice of images for each side, with the sums that its score needs."""

    def __init__(
        self, pool: Sequence[Candidate], needs: Needs, groups: dict[tuple[str, str], int], random: Random
    ) -> None:
        self.pool, self.random = pool, random
        self.classes = range(len(pool[0].pixels))
        totals = [sum(candidate.pixels[c] for candidate in pool) for c in self.classes]
        whole = sum(totals) or 1
        self.roots = [math.sqrt(total / whole) for total in totals]
        self.group = [candidate.group for candidate in pool]
        self.chosen: list[list[int]] = [_spread(pool, groups, side, needs[side], random) for side in range(3)]
        self.taken = {index for part in self.chosen for index in part}
        self.owner: dict[tuple[str, str], tuple[int, int]] = {}  # group: (side, images chosen)
        for side, part in enumerate(self.chosen):
            for index in part:
                self.owner[self.group[index]] = (side, self.owner.get(self.group[index], (side, 0))[1] + 1)
        self.sums = [[sum(pool[i].pixels[c] for i in part) for c in self.classes] for part in self.chosen]
        self.crowd = [sum(n * n for s, n in self.owner.values() if s == side) for side in range(3)]
        self.scores = [self._side(side, self.sums[side], self.crowd[side]) for side in range(3)]

    def score(self) -> Score:
        """Return the score, the lower the better."""
        return sum(score[0] for score in self.scores), math.fsum(score[1] for score in self.scores)

    def try_swap(self) -> None:
        """Exchange one chosen image for one that is free to take its place, where that does not worsen the score."""
        out_at = self._pick(len(self.taken))
        side = 0
        while out_at >= len(self.chosen[side]):
            out_at -= len(self.chosen[side])
            side += 1
        old, new = self.chosen[side][out_at], self._pick(len(self.pool))
        before, after = self.group[old], self.group[new]
        if new in self.taken or self.pool[new].side not in (None, side):
            return
        owner, count = self.owner.get(after, (side, 0))
        if owner != side:
            return
        sums = [
            total - out + into
            for total, out, into in zip(
                self.sums[side], self.pool[old].pixels, self.pool[new].pixels, strict=True
            )
        ]
        mine = self.owner[before][1]
        # Of the sum of squared counts: one less of `before`, one more of `after`.
        crowd = self.crowd[side] + (0 if before == after else 2 * (count - mine) + 2)
        score = self._side(side, sums, crowd)
        if score > self.scores[side]:
            return
        self.scores[side], self.sums[side], self.crowd[side] = score, sums, crowd
        self.chosen[side][out_at] = new
        self.taken.remove(old)
        self.taken.add(new)
        if mine == 1:
            del self.owner[before]
        else:
            self.owner[before] = (side, mine - 1)
        self.owner[after] = (side, self.owner.get(after, (side, 0))[1] + 1)

    def _side(self, side: int, sums: Sequence[int], crowd: int) -> Score:
        images = len(self.chosen[side])
        if not images:
            return 0, 0.0
        whole = sum(sums) or 1
        apart = [(math.sqrt(sums[c] / whole) - self.roots[c]) ** 2 for c in self.classes]
        lacking = sum(self.roots[c] > 0 and not sums[c] for c in self.classes)
        return lacking * (10 if side == 0 else 1), math.fsum(apart) + _CROWDING * (crowd / (images * images))

    def _pick(self, count: int) -> int:
        return int(self.random.random() * count)


def _by_need(random: Random, missing: Needs) -> list[int]:
    """Return the sides that lack images, the last most likely the one that lacks most."""
    sides = [side for side in range(3) if missing[side]]
    order: list[int] = []
    while sides:
        at = random.random() * sum(missing[side] for side in sides)
        for side in sides:
            at -= missing[side]
            if at < 0:
                break
        sides.remove(side)
        order.insert(0, side)
    return order


def _spread(
    pool: Sequence[Candidate], groups: dict[tuple[str, str], int], side: int, number: int, random: Random
) -> list[int]:
    """Choose ``number`` images of a side's groups, one group after the other, so that each gives about as many."""
    piles: dict[tuple[str, str], list[int]] = {}
    for index, candidate in enumerate(pool):
        if groups.get(candidate.group) == side:
            piles.setdefault(candidate.group, []).append(index)
    order = list(piles.values())
    random.shuffle(order)
    for pile in order:
        random.shuffle(pile)
    chosen: list[int] = []
    while len(chosen) < number:
        for pile in order:
            if pile and len(chosen) < number:
                chosen.append(pile.pop())
    return chosen
