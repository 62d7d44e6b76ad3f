"""What becomes of processes that outlive their call: adopted into the session, or ended. Pure.

They are background work of the agent (a server that it left running), so by default they stay and the session is
charged. While the host's reserve is being used up they are nobody's: an agent that would be lost is worth more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from controller.policy.text import human_bytes

_WORTH: Final = 16 * 1024 * 1024  # bytes: ending less than that helps nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``why``: the rule, in words, where they are to be ended."""

    adopt: bool
    why: str = ""


def judge(configured: Literal["adopt", "kill"], *, usage: int, unused: int) -> Verdict:
    """``usage``: what the leaf of the call still holds; ``unused``: what may still be used of the host's memory without
    its reserve (negative: the reserve is in use). Bytes."""
    if configured == "kill":
        return Verdict(adopt=False, why="as configured (daemon.leftovers)")
    if unused < 0 and usage >= _WORTH:
        why = f"the host's reserve of memory is in use, and they hold {human_bytes(usage)}"
        return Verdict(adopt=False, why=why)
    return Verdict(adopt=True)
