"""Counter-based random numbers: every draw is a function of its key, so that there is no state to save."""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: object) -> int:
    """Return 64 bits from the parts, the same on every machine and with every library version."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def uniform(*parts: object) -> float:
    """Return a number in [0, 1)."""
    return (key(*parts) >> 11) * 2.0**-53


def mix(counter: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer (Steele et al. 2014): random bits for each element of a counter."""
    z = counter + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(n: int, *parts: object) -> np.ndarray:
    """Return a permutation of range(n) keyed by the parts."""
    with np.errstate(over="ignore"):
        return np.argsort(mix(np.uint64(key(*parts)) + np.arange(n, dtype=np.uint64)), kind="stable")
