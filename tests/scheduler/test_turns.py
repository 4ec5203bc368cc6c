"""Everybody in turn, and nobody for ever."""

from __future__ import annotations

import random

import pytest

from functions.ids import ProjectId
from scheduler.turns import EVERY_S, FROM_THE_FIRST, LONG, Key, Lines, Turns


def key(number: int) -> Key:
    return (ProjectId(1), f"{number:03}")


def round_of(turns: Turns, now_s: float, *, endpoints: int, at_once: int) -> list[list[int]]:
    """What each look of one round sees, as numbers."""
    looks = []
    while turns.begin(now_s):
        first = 0 if turns.after == FROM_THE_FIRST else int(turns.after[1]) + 1
        seen = list(range(first, min(first + at_once, endpoints)))
        turns.looked(key(seen[-1]) if len(seen) == at_once else None)
        looks.append(seen)
        if not turns.under_way:
            break
        assert len(looks) < 100, "it walks for ever"
    return looks


def test_a_round_sees_each_once_and_ends() -> None:
    turns = Turns()
    assert round_of(turns, 0, endpoints=3, at_once=4) == [[0, 1, 2]]
    assert round_of(turns, 0, endpoints=3, at_once=4) == [[0, 1, 2]]
    assert round_of(turns, 0, endpoints=9, at_once=4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_a_round_of_several_looks_is_begun_once_a_second() -> None:
    turns = Turns()
    assert len(round_of(turns, 0, endpoints=9, at_once=4)) == 3
    assert turns.long
    assert round_of(turns, EVERY_S / 2, endpoints=9, at_once=4) == []
    assert len(round_of(turns, EVERY_S, endpoints=3, at_once=4)) == 1
    assert not turns.long
    assert len(round_of(turns, EVERY_S, endpoints=3, at_once=4)) == 1


def test_a_round_to_come_begins_with_those_that_were_passed_by() -> None:
    turns = Turns()
    assert turns.begin(0)
    turns.looked(key(3))
    turns.leave(key(3))
    turns.leave((ProjectId(2), "000"))
    assert round_of(turns, 0, endpoints=9, at_once=4) == [[4, 5, 6, 7], [8]]
    assert turns.begin(EVERY_S, long=[ProjectId(1)]) and turns.after == (ProjectId(2), "000")
    turns.looked(None)
    assert turns.under_way, "those before them come as well"
    turns.looked(key(3))
    turns.looked(None)
    assert round_of(turns, 2 * EVERY_S, endpoints=9, at_once=4) == [[4, 5, 6, 7], [8], [0, 1, 2, 3]]
    assert round_of(turns, 3 * EVERY_S, endpoints=3, at_once=4) == [[0, 1, 2]]


def test_who_is_served_stands_behind_all_others_of_its_project() -> None:
    lines = Lines()
    found = [key(number) for number in range(3)]
    for expected in ("000", "001", "002", "000"):
        lines.join(found)
        assert lines.take(ProjectId(1)) == expected
    assert [lines.take(ProjectId(1)) for _ in range(3)] == ["001", "002", None]
    assert lines.projects(lambda _: 0) == []


def test_the_project_that_has_least_under_way_is_the_first_and_who_was_served_longest_ago() -> None:
    lines, busy = Lines(), {1: 3, 2: 0, 3: 0}
    for _ in range(2):
        lines.join((ProjectId(project), f"{name}") for project in busy for name in range(LONG))
    assert lines.of(LONG) == {1, 2, 3}
    order = []
    for _ in range(4):
        order.append(lines.projects(lambda project: busy[project]))
        lines.take(order[-1][0])
    assert order == [[2, 3, 1], [3, 2, 1], [2, 3, 1], [3, 2, 1]]
    assert lines.of(LONG) == {1}


def seen(keys: list[Key], after: Key, limit: int, passed_by: frozenset[ProjectId]) -> list[Key]:
    """What ``walk_endpoints`` answers: of a project that is passed by one only."""
    found: list[Key] = []
    while len(found) < limit:
        skip = found and after[0] in passed_by
        after = next((key for key in keys if (key[0] > after[0] if skip else key > after)), FROM_THE_FIRST)
        if after == FROM_THE_FIRST:
            break
        found.append(after)
    return found


@pytest.mark.parametrize("seed", range(150))
def test_everybody_is_served_while_all_have_always_something_to_be_sent(seed: int) -> None:
    dice = random.Random(seed)
    long, at_once, most = dice.randint(2, 6), dice.randint(1, 8), dice.randint(1, 3)
    keys = [
        (ProjectId(project), f"{number:02}")
        for project in range(1, dice.randint(2, 5))
        for number in range(dice.randint(1, 15))
    ]
    turns, lines, waiting, again = Turns(), Lines(), set(keys), list[Key]()
    for number in range(3 * len(keys)):
        for _ in range(100):
            if turns.begin(number * EVERY_S, lines.of(long)):
                passed_by = lines.of(long) | turns.left
                found = seen(keys, turns.after, at_once, passed_by)
                lines.join(key for key in found if key[0] not in passed_by)
                last = found[-1] if len(found) == at_once else None
                turns.looked(last)
                if last is not None and last[0] in lines.of(long) - passed_by:
                    turns.leave(last)
            if turns.long:
                full = lines.of(long // 2)
                lines.join(key for key in again if key[0] not in full)
            again = []
            for project in lines.projects(lambda _: 0):
                for _ in range(dice.randint(0, most)):
                    if (endpoint := lines.take(project)) is not None:
                        again.append((project, endpoint))
            waiting.difference_update(again)
            if not turns.under_way and dice.random() < 0.3:
                break
        else:
            raise AssertionError("a round does not end")
    assert not waiting
