"""KV policies in virtual time: recorded agents think on a modelled engine, under Corral's rule and under the baselines.

Three questions, each with its own runs:

- *regret*: what a policy's decisions cost over what the best could, when all meet the same timeline (``delays=False``);
  the best is the lower bound of ``gpu.simulate.offline``, which knows every pause;
- *latency*: the same policies where recomputing and copying delay turns: first token, sessions' time;
- *ladder*: FastSwitch's four rungs.

The rule's parameters were chosen on seeds below ``REPORTED``; what is reported comes from seeds above.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Final

from controller.simulate.trace import TraceError, read_trace
from gpu.cost import ForwardModel, SwapModel, gamma
from gpu.policy import (
    AlwaysDrop,
    AlwaysKeep,
    AlwaysOffload,
    Continuum,
    InferCept,
    KvPolicy,
    LeastRecentlyUsed,
    ShadowPrice,
)
from gpu.simulate import Call, EngineModel, Outcome, Script, lower_bound, script, simulate
from gpu.simulate.fastswitch import LadderResult, Rung, SwitchModel, climb
from tests.bench.density import TRACES
from tests.bench.harness import BenchError, Context
from tests.bench.result import REPOSITORY, Figure, Result, Row
from tests.bench.stats import percentile

REPORTED: Final = 100  # seeds up to this one were looked at while the rule was written
POOLS: Final = (0.6, 0.8, 1.0)  # of all sessions' KV, in the mean over time
OUTSIDE: Final = (0.0, 0.25, 1.0)  # room for offloaded KV, of what lies idle in the mean
SESSIONS: Final = (8, 32, 128, 512)
SEEDS: Final = {8: 5, 32: 3, 128: 1, 512: 1}
TURNS: Final = {512: 12}  # of each session, from its beginning: to end in minutes
ARRIVE: Final = 60.0  # seconds within which sessions begin
PER_ENGINE: Final = 16  # sessions for which one GPU computes
# A model of 8 G parameters with 32 layers and 8 KV heads of 128 in 16 bits; 12,500 tokens/s of prefill, 12 GB/s.
BYTES_PER_TOKEN: Final = 131_072
FORWARD: Final = ForwardModel(a=2e-10, b=8e-5)
SWAP: Final = SwapModel(bytes_per_second=12e9, latency=0.005)
GAMMA: Final = gamma(layers=32, width=1024, parameters=8e9, flops_per_byte=300)
TARGET: Final = 1.15
OURS: Final = "corral"
KNOWING: Final = "corral-knowing"

POLICIES: Final[tuple[KvPolicy, ...]] = (
    ShadowPrice(),
    LeastRecentlyUsed(),
    InferCept(),
    Continuum(offload=True, name="continuum-offload"),
    Continuum(),
    AlwaysKeep(),
    AlwaysOffload(),
    AlwaysDrop(),
)
Recording = tuple[str, tuple[Call, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Sessions, and how much KV they have: tokens in the mean over time, in turns and between them."""

    sessions: int
    seed: int
    scripts: tuple[Script, ...]
    running: float
    idle: float
    decoding: float  # seconds of prefill that decoding is worth

    def model(self, pool: float, outside: float) -> EngineModel:
        return EngineModel(
            pool=max(int(pool * (self.running + self.idle)), *(one.largest for one in self.scripts)),
            bytes_per_token=BYTES_PER_TOKEN,
            host_bytes=int(outside * self.idle) * BYTES_PER_TOKEN,
            forward=FORWARD,
            swap=SWAP,
            replicas=max(1, self.sessions // PER_ENGINE),
        )


async def measure(context: Context) -> Result:
    recordings = read_recordings()
    counts = SESSIONS[:2] if context.quick else SESSIONS
    seeds = {one: context.count(full=SEEDS[one], quick=1) for one in counts}
    result = Result(runs=max(seeds.values()), mode="simulated")
    result.notes += [
        f"{len(recordings)} recordings; tokens are modelled (docs/gpu.md); durations are learned in the run, from what"
        f" ended before; seeds above {REPORTED}; 512 sessions: their first {TURNS[512]} turns",
        "regret: prefill, decoding and copies, over the same of the lower bound; regret_prefill: without decoding,"
        " which no policy can change; regret_avoidable: what is computed again and copied alone",
    ]
    for sessions in counts:
        for seed in range(REPORTED + 1, REPORTED + 1 + seeds[sessions]):
            context.say(f"regret: {sessions} sessions, seed {seed}")
            scene = stage(recordings, sessions, seed)
            result.rows += regrets(scene)
            if sessions == 32:
                context.say(f"latency: {sessions} sessions, seed {seed}")
                result.rows += latencies(scene)
    context.say("FastSwitch's ladder")
    runs = {rung: [climb(rung, SwitchModel(), seed=REPORTED + 1 + at) for at in range(seeds[32] + 1)] for rung in Rung}
    result.rows += ladder_rows(runs)
    result.summary = summarise(result.rows)
    return result


# --- scenes ----------------------------------------------------------------------------------------------------------


def read_recordings() -> list[Recording]:
    """The tool calls of all recorded agents; see density for where they are. Raises BenchError."""
    folder = Path(os.environ.get(TRACES) or REPOSITORY.parent / "shared" / "traces" / "compact")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise BenchError(f"no traces in {folder}; set {TRACES} to a directory of agentcg-compact-v1 files")
    found: list[Recording] = []
    for path in paths:
        try:
            trace = read_trace(path)
        except TraceError as err:
            raise BenchError(str(err)) from err
        calls = tuple(
            Call(one.start, one.end, f"{one.tool}/{one.kind}" if one.kind else one.tool) for one in trace.tools
        )
        if calls:
            found.append((trace.name, calls))
    return found


def stage(recordings: Sequence[Recording], sessions: int, seed: int) -> Scene:
    """All recordings in random order, over and over; each session draws its own tokens."""
    random = Random(f"kv-sim/{sessions}/{seed}")  # noqa: S311  # to be repeated
    scripts: list[Script] = []
    while len(scripts) < sessions:
        for name, calls in random.sample(list(recordings), len(recordings))[: sessions - len(scripts)]:
            starts = random.uniform(0.0, ARRIVE)
            scripts.append(script(name, calls, random=random, turns=TURNS.get(sessions), starts=starts))
    endless = EngineModel(
        pool=1 << 50,
        bytes_per_token=BYTES_PER_TOKEN,
        host_bytes=0,
        forward=FORWARD,
        swap=None,
        replicas=max(1, sessions // PER_ENGINE),
    )
    line = simulate(scripts, endless, AlwaysKeep(), delays=False)
    return Scene(
        sessions=sessions,
        seed=seed,
        scripts=tuple(scripts),
        running=fmean(endless.pool - room for _, room in line.timeline.room),
        idle=sum((one.end - one.begin) * one.tokens for one in line.timeline.idle) / line.wall,
        decoding=sum(one.decoding(GAMMA) for one in scripts) * FORWARD.b,
    )


# --- regret ----------------------------------------------------------------------------------------------------------


def regrets(scene: Scene) -> list[Row]:
    rows: list[Row] = []
    for pool in POOLS:
        for outside in OUTSIDE:
            model = scene.model(pool, outside)
            runs: list[tuple[str, Outcome, float]] = []
            for policy, oracle in [(one, False) for one in POLICIES] + [(POLICIES[0], True)]:
                began = time.perf_counter()
                run = simulate(scene.scripts, model, policy, oracle=oracle, delays=False)
                runs.append((KNOWING if oracle else policy.name, run, time.perf_counter() - began))
            bound = lower_bound(runs[0][1].timeline, upper=min(run.avoidable for _, run, _ in runs))
            for name, run, seconds in runs:
                rows.append(
                    {
                        "part": "regret",
                        "sessions": scene.sessions,
                        "seed": scene.seed,
                        "pool": pool,
                        "outside": outside,
                        "policy": name,
                        "regret": (run.cost + scene.decoding) / (bound.total + scene.decoding),
                        "regret_prefill": run.cost / bound.total,
                        "regret_avoidable": run.avoidable / bound.avoidable if bound.avoidable > 0 else None,
                        "avoidable_seconds": run.avoidable,
                        "bound_seconds": bound.avoidable,
                        "unavoidable_seconds": bound.unavoidable,
                        "decoding_seconds": scene.decoding,
                        "recomputed_tokens": run.recomputed_tokens,
                        "turns": run.turns,
                        "virtual_seconds": run.wall,
                        "seconds": seconds,
                    }
                )
    return rows


def latencies(scene: Scene) -> list[Row]:
    rows: list[Row] = []
    for pool in POOLS:
        for outside in OUTSIDE:
            model = scene.model(pool, outside)
            for policy, admission in [(one, False) for one in POLICIES] + [(POLICIES[0], True)]:
                run = simulate(scene.scripts, model, policy, admission=admission)
                rows.append(
                    {
                        "part": "latency",
                        "sessions": scene.sessions,
                        "seed": scene.seed,
                        "pool": pool,
                        "outside": outside,
                        "policy": f"{policy.name}-admitting" if admission else policy.name,
                        **_waits(run),
                    }
                )
    return rows


def _waits(run: Outcome) -> Row:
    return {
        "first_token_p50": percentile(run.first_token, 50),
        "first_token_p99": percentile(run.first_token, 99),
        "session_seconds": fmean(run.session_seconds),
        "recomputed_tokens": run.recomputed_tokens,
        "held_token_seconds": run.held,
        "wall": run.wall,
    }


# --- FastSwitch ------------------------------------------------------------------------------------------------------


def ladder_rows(runs: dict[Rung, list[LadderResult]]) -> list[Row]:
    return [
        {
            "part": "ladder",
            "policy": rung.name.lower(),
            "first_token_p95": percentile(first, 95),
            "first_token_p99": percentile(first, 99),
            "between_p99": percentile(between, 99),
            "between_p999": percentile(between, 99.9),
            "copied_gb": sum(one.copied for one in some) / 1e9,
            "gpu_waited_seconds": sum(one.idle for one in some),
        }
        for rung, some in runs.items()
        for first in [[value for one in some for value in one.first_token]]
        for between in [[value for one in some for value in one.between]]
    ]


LADDER_TAILS: Final = ("first_token_p95", "first_token_p99", "between_p99", "between_p999")


def out_of_order(rows: Sequence[Row]) -> int:
    """How many of the tails did not fall from one rung to the next."""
    return sum(
        float(above[tail] or 0) >= float(below[tail] or 0) for below, above in pairwise(rows) for tail in LADDER_TAILS
    )


# --- summary ---------------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row]) -> dict[str, Figure]:
    ours = cells(rows, OURS, "regret")
    strict = cells(rows, OURS, "regret_prefill")
    summary = {
        "regret_mean": Figure(value=_mean(ours), unit="ratio", at_most=TARGET, samples=ours),
        "regret_prefill_mean": Figure(value=_mean(strict), unit="ratio", samples=strict),
        "regret_avoidable_mean": _figure(rows, OURS, "regret_avoidable"),
    }
    for name in [KNOWING, *(one.name for one in POLICIES[1:])]:
        summary[f"regret_{name}"] = _figure(rows, name, "regret")
        summary[f"regret_prefill_{name}"] = _figure(rows, name, "regret_prefill")
    for name in [OURS, f"{OURS}-admitting", *(one.name for one in POLICIES[1:])]:
        for key in ("session_seconds", "first_token_p99"):
            summary[f"{key}_{name}"] = Figure(value=_mean(cells(rows, name, key)), unit="s")
    tails = [row for row in rows if row["part"] == "ladder"]
    for row in tails:
        for key in ("first_token_p99", "between_p999"):
            summary[f"ladder_{key}_{row['policy']}"] = Figure(value=float(row[key] or 0), unit="s")
    summary["ladder_out_of_order"] = Figure(value=out_of_order(tails), unit="count", at_most=0)
    faster = [
        float(row["virtual_seconds"] or 0) / float(row["seconds"] or 1)
        for row in rows
        if row["part"] == "regret" and row["policy"] == OURS
    ]
    summary["times_faster"] = Figure(value=median(faster) if faster else None, unit="ratio", samples=faster)
    return summary


def cells(rows: Sequence[Row], policy: str, key: str) -> list[float]:
    """A value of each cell (sessions, pool, outside): the mean over its seeds."""
    found: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        value = row.get(key)
        if row["policy"] == policy and row["part"] != "ladder" and value is not None:
            found.setdefault((row["sessions"], row["pool"], row["outside"]), []).append(float(value))
    return [fmean(values) for values in found.values()]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _figure(rows: Sequence[Row], policy: str, key: str) -> Figure:
    found = cells(rows, policy, key)
    return Figure(value=_mean(found), unit="ratio", samples=found)
