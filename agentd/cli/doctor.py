"""``doctor``: feature, found or not, what its absence costs, how to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentd.cli import hostprobe
from agentd.cli.context import Context
from agentd.cli.errors import EXIT_FAILED, EXIT_OK, CliError, DaemonAway, NotPermitted
from agentd.cli.hostprobe import FeatureLike, essential_missing, probe_host
from agentd.cli.plain import Plain
from agentd.cli.remote import parse_target
from agentd.cli.table import Cell, Column, Style

COLUMNS = (
    Column(title="FEATURE"),
    Column(title="FOUND"),
    Column(title="DETAIL", least=16, rank=1),
    Column(title="WHAT IT COSTS YOU", least=18),
    Column(title="REMEDY", least=18),
)

_FOUND: Final = {True: Cell("yes", Style.GOOD), False: Cell("no", Style.BAD), None: Cell("?")}


def doctor(context: Context) -> int:
    """The daemon's view (it has the rights), else our own. Exit 1 when something essential is missing."""
    features, source = _features(context)
    missing = essential_missing(features)
    if context.json:
        listed: list[Plain] = [
            {
                "name": f.name,
                "found": f.found,
                "detail": f.detail,
                "cost": "" if f.found else f.cost,
                "remedy": "" if f.found else f.remedy,
            }
            for f in features
        ]
        context.emit({"source": source, "features": listed, "essential_missing": list(missing)})
    else:
        context.say(f"as seen by {source}")
        context.table(COLUMNS, feature_rows(features))
        lacking = sum(not f.found for f in features)
        context.say(f"{len(features) - lacking} of {len(features)} features found")
    if missing:
        context.note(f"corral doctor: essential and missing: {', '.join(missing)}; the table says what that costs")
        return EXIT_FAILED
    return EXIT_OK


def _features(context: Context) -> tuple[Sequence[FeatureLike], str]:
    try:
        with context.connect() as api:
            told = api.doctor()
            mode = api.snapshot().host.mode
        # What any process of the daemon's host can try is added where the daemon did not say it; our own rights are not
        # asked: they are not the daemon's.
        added: list[FeatureLike] = [hostprobe.tree_of(mode)]
        if parse_target(context.api).path is not None:
            added += [hostprobe.pidfd(), hostprobe.launcher(), hostprobe.pressure(), hostprobe.memory_info()]
        names = {feature.name for feature in told}
        own = [feature for feature in added if feature.name not in names]
        return [*own, *told], f"agentd at {context.api}"
    except (DaemonAway, NotPermitted) as err:
        if context.args.api:
            raise  # this very daemon was asked for
        context.note(f"corral doctor: {err}; probing from here")
    except CliError as err:
        context.note(f"corral doctor: {err}; probing from here")
    return probe_host(), "this process (no daemon)"


def feature_rows(features: Sequence[FeatureLike]) -> list[list[Cell | str]]:
    return [
        [
            f.name,
            _FOUND[f.found],
            f.detail or "-",
            "-" if f.found else f.cost or "-",
            "-" if f.found else f.remedy or "-",
        ]
        for f in features
    ]
