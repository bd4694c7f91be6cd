"""Seeds for every purpose, from the one that a recipe states."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def seed_of(seed: int, purpose: str, number: int) -> int:
    """Return a generator's seed for one purpose and one epoch or batch; different ones are unrelated."""
    # Hashed: seed + number would make epoch 1 of seed 0 the same as epoch 0 of seed 1.
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()[:8], "big") >> 1
