from __future__ import annotations

import pytest
from cryptography.fernet import Fernet

from functions.errors import Invalid, Unavailable
from functions.sealing import Sealer


def key() -> str:
    return Fernet.generate_key().decode()


def test_what_was_sealed_opens_again_and_is_not_readable() -> None:
    sealer = Sealer(key())
    sealed = sealer.seal(b"whsec_abc")
    assert b"whsec_abc" not in sealed
    assert sealer.open(sealed) == b"whsec_abc"


def test_a_new_key_in_front_seals_and_the_old_one_still_opens() -> None:
    old, new = key(), key()
    sealed_before = Sealer(old).seal(b"x")
    both = Sealer(f"{new}, {old}")
    assert both.open(sealed_before) == b"x"
    assert Sealer(new).open(both.seal(b"y")) == b"y"


def test_the_wrong_key_is_said_to_be_wrong() -> None:
    sealed = Sealer(key()).seal(b"x")
    with pytest.raises(Unavailable, match="RGRID_SECRET_KEY"):
        Sealer(key()).open(sealed)


@pytest.mark.parametrize("change", [b"", b"gAAAA", b"\x00" * 100])
def test_a_changed_secret_does_not_open(change: bytes) -> None:
    with pytest.raises(Unavailable):
        Sealer(key()).open(change)


@pytest.mark.parametrize("keys", ["", " , ", "secret", "a" * 44, f"{'A' * 43}=,short", "é" * 44])
def test_what_is_no_key_is_refused_without_being_repeated(keys: str) -> None:
    with pytest.raises(Invalid, match="RGRID_SECRET_KEY") as caught:
        Sealer(keys)
    for part in keys.split(","):
        assert not part.strip() or part not in caught.value.message
