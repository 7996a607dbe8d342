"""Rounds: each call of `preprocess.py gym` that adds episodes to a run's shards.

They stand in build.json.  The shards of a round follow those of the round before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from data.shards.build_info import read_build_info, shard_name, skipped_shards

EPISODES_PER_SHARD, STEPS_PER_SHARD = 10, 5000
KEY = "rounds"


@dataclass(frozen=True)
class Round:
    """What one call records, by one policy."""

    policy: str
    fingerprint: str = ""
    """Of a trained controller and its world."""
    seed: int = 0
    num_envs: int = 0
    """That are stepped together, where the episodes depend on it; else 0."""
    episodes: int = 0
    """Whole episodes; 0 where `steps` are counted."""
    steps: int = 0
    command: str = ""

    @property
    def num_shards(self) -> int:
        if self.steps:
            return -(-self.steps // STEPS_PER_SHARD)
        return -(-self.episodes // EPISODES_PER_SHARD)

    def count(self, shard: int) -> int:
        """Return the episodes, or the steps, of the round's shard number `shard`."""
        total = self.steps or self.episodes
        most = STEPS_PER_SHARD if self.steps else EPISODES_PER_SHARD
        return min(most, total - shard * most)

    def same_as(self, other: Round) -> bool:
        """Whether both record the same episodes."""
        return replace(self, command="") == replace(other, command="")


@dataclass(frozen=True)
class Plan:
    """The rounds of a run, and which of them a call records."""

    rounds: tuple[Round, ...]
    active: int
    replaced: bool = False
    """The active round was begun by an earlier controller, and is recorded anew."""

    @property
    def num_shards(self) -> int:
        return sum(each.num_shards for each in self.rounds)

    @property
    def first_shard(self) -> int:
        """Of the active round."""
        return sum(each.num_shards for each in self.rounds[: self.active])

    def locate(self, index: int) -> tuple[int, int]:
        """Return a shard's round, and its number within that."""
        for number, each in enumerate(self.rounds):
            if index < each.num_shards:
                return number, index
            index -= each.num_shards
        raise IndexError(index)


def read_rounds(folder: Path) -> tuple[Round, ...]:
    """Return the rounds of a folder of shards; none where it holds none of this source."""
    info = read_build_info(folder)
    known = {field.name for field in fields(Round)}
    try:
        return tuple(
            Round(**{k: v for k, v in each.items() if k in known})
            for each in (info or {}).get(KEY, ())
        )
    except (TypeError, AttributeError):
        raise ValueError(
            f"{folder / 'build.json'} lists rounds that cannot be read; restore it from a copy, or "
            f"record anew with --restart"
        ) from None


def plan_round(
    folder: Path, known: Sequence[Round], wanted: Round, number: int | None = None
) -> Plan:
    """Decide what a call records: a round that was begun, or one more.

    number: of the round; by default that of one with these settings, or else the next.  ValueError
    where another round is not finished.
    """
    known = tuple(known)
    matching = [n for n, each in enumerate(known) if each.same_as(wanted)]
    if number is None:
        number = matching[0] if matching else len(known)
    if number in matching:
        return Plan(known, number)
    if known and _is_empty(folder, known):  # begun, and nothing came of it
        known = known[:-1]
        number = min(number, len(known))
    if number > len(known):
        raise ValueError(
            f"--round {number}: {folder} has {len(known)} round(s), numbered from 0; record round "
            f"{len(known)} first"
        )
    missing = missing_shards(folder, known)
    if not missing:
        return Plan((*known, wanted), len(known))
    begun, last = Plan(known, 0).locate(missing[0])[0], len(known) - 1
    another = replace(wanted, fingerprint=known[last].fingerprint)
    if begun == last and wanted.fingerprint and known[last].same_as(another):
        return Plan((*known[:-1], wanted), last, replaced=True)
    raise ValueError(
        f"{folder} lacks {shard_name(missing[0])} of its round {begun} ({known[begun].policy}); "
        f"finish that round first: {known[begun].command}; without any of its shards the last "
        f"round is left out"
    )


def is_recorded(folder: Path, known: Sequence[Round], number: int) -> bool:
    """Whether all shards of a round are there."""
    if number >= len(known):
        return False
    first = Plan(tuple(known), number).first_shard
    own = range(first, first + known[number].num_shards)
    return not any(shard in own for shard in missing_shards(folder, known))


def _is_empty(folder: Path, rounds: Sequence[Round]) -> bool:
    """Whether no shard of the last round was recorded."""
    count = rounds[-1].num_shards
    missing = set(missing_shards(folder, rounds))
    last = sum(each.num_shards for each in rounds)
    return missing.issuperset(range(last - count, last))


def missing_shards(folder: Path, rounds: Sequence[Round]) -> list[int]:
    """Return the numbers of the shards that are not there."""
    skipped = skipped_shards(folder)
    count = sum(each.num_shards for each in rounds)
    return [i for i in range(count) if i not in skipped and not (folder / shard_name(i)).exists()]


def as_plain(rounds: Sequence[Round]) -> list[dict[str, object]]:
    """Return plain values, for build.json."""
    return [asdict(each) for each in rounds]
