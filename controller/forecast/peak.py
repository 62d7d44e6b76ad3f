"""The peak of the host's future memory, in the manner of the Past-Future scheduler (arXiv 2507.10150, section 4).

There: requests that hold a_i tokens and will make b_i more, one a step, sorted by b descending; when the i-th ends, the
first i are still there, so the batch needs M* = max over i of (b_i * i + sum of a_j, j <= i), and a request is admitted
while M* is below 0.95 of the capacity. Here a call grows not by one token a step but as some earlier call of its kind
did; its running maximum takes the place of a + b. Sums can still be largest only just before an end, so only ends are
looked at. And the remaining life is not drawn once but SCENARIOS times, stratified; the answer is their median.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from controller.forecast.learner import SCENARIOS
from controller.forecast.need import Future, Need

SHARE: Final = 0.95  # of the capacity that M* may reach: the paper's


def future_peak(futures: Sequence[Future]) -> int:
    """M* of one scenario, in bytes: one pass over the moments at which something grows or ends."""
    edges: list[tuple[float, bool, int]] = []
    for future in futures:
        before = 0
        for at, upto in zip(future.at, future.upto, strict=True):
            edges.append((at, False, upto - before))
            before = upto
        edges.append((future.ends, True, -before))
    edges.sort()  # at one moment what grows comes before what ends: until its very end a call holds what it has
    total = most = 0
    for _, _, change in edges:
        total += change
        most = max(most, total)
    return most


def peak_of(needs: Sequence[Need]) -> int:
    """The median M* of the scenarios, in bytes. The tail beyond it is the brake's business: a call that grows more than
    was foreseen is held, and need not have been kept out for it. A need without futures counts with its claim."""
    known = [need.futures for need in needs if need.futures]
    fixed = sum(need.claim for need in needs if not need.futures)
    if not known:
        return fixed
    peaks = sorted(future_peak([futures[k] for futures in known]) for k in range(SCENARIOS))
    return peaks[SCENARIOS // 2 - 1] + fixed


def fits(needs: Sequence[Need], budget: int) -> bool:
    """Whether ``peak_of(needs) <= budget``, mostly without computing it: the plain sum of a scenario's peaks is never
    below its M*, so half of the scenarios within the budget by their sums are enough."""
    known = [need.futures for need in needs if need.futures]
    budget -= sum(need.claim for need in needs if not need.futures)
    if not known:
        return budget >= 0
    late = []
    within = 0
    for k in range(SCENARIOS):
        if sum(futures[k].upto[-1] for futures in known) <= budget:
            within += 1
        else:
            late.append(k)
    for done, k in enumerate(late):
        if within >= SCENARIOS // 2 or within + len(late) - done < SCENARIOS // 2:
            break
        within += future_peak([futures[k] for futures in known]) <= budget
    return within >= SCENARIOS // 2


def ends_by(needs: Sequence[Need], nbytes: int, now_used: Sequence[int]) -> float | None:
    """In how many seconds ``nbytes`` will typically have been freed by calls that end; None: not by these."""
    freed = 0
    for need, used in sorted(zip(needs, now_used, strict=True), key=lambda pair: pair[0].ends_typical):
        freed += used
        if freed >= nbytes:
            return max(0.0, need.ends_typical)
    return None
