"""Everybody in turn, and nobody for ever."""

from __future__ import annotations

from functions.ids import ProjectId
from scheduler.turns import EVERY_S, FROM_THE_FIRST, Key, Turns


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


def test_who_found_no_room_is_the_next() -> None:
    turns = Turns()
    round_of(turns, 0, endpoints=3, at_once=4)
    turns.go_on_behind(key(0))
    assert round_of(turns, 0, endpoints=3, at_once=4) == [[1, 2], [0, 1, 2]]
    turns = Turns()
    turns.go_on_behind(key(5))
    assert round_of(turns, 0, endpoints=9, at_once=4) == [[6, 7, 8], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_who_has_to_wait_for_others_of_a_project_is_the_first_of_the_next_round() -> None:
    turns = Turns()
    assert turns.begin(0)
    turns.looked(key(3))
    turns.begin_behind(key(1))
    assert round_of(turns, 0, endpoints=9, at_once=4) == [[4, 5, 6, 7], [8]]
    assert round_of(turns, EVERY_S, endpoints=9, at_once=4) == [[2, 3, 4, 5], [6, 7, 8], [0, 1, 2, 3]]
    assert turns.after == FROM_THE_FIRST or turns.after == key(3)
