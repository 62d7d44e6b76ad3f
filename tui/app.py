"""The dashboard: a pure client of the API. Everything it shows comes from a Source, everything it does goes to one."""

from __future__ import annotations

import gc
import io
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from tui.export import to_csv, to_json
from tui.keys import KEYS
from tui.layout import Layout, LayoutError, default_path
from tui.model import acting
from tui.model.moments import parse
from tui.model.rows import Row
from tui.pages.base import Page
from tui.pages.call import CallPage
from tui.pages.dialogs import Ask, Columns, Confirm, Export, Help
from tui.pages.groups import SessionPage, TenantPage
from tui.pages.host import HostPage
from tui.pages.machine import DoctorPage, GpuPage
from tui.player import Player
from tui.source.file import FileSource
from tui.source.live import LiveSource
from tui.source.protocol import Action, NotOffered, Source, SourceError, Verb

FRAME: Final = 0.1  # seconds: what comes faster is drawn together
TICK: Final = 0.25  # seconds between steps of a replay
THEME: Final = "textual-dark"


class DashboardError(Exception):
    """The dashboard cannot start: what is wrong, and the remedy."""


class CorralApp(App[None]):
    """``clock`` gives unix seconds (tests fix it); ``state`` is where the layout is kept, None: nowhere; ``begin`` the
    moment to start at, as an operator writes it."""

    TITLE = "corral"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "quit", "quit", show=False)]
    COMMAND_PALETTE_BINDING = "ctrl+p"

    def __init__(
        self,
        source: Source,
        *,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        state: Path | None = None,
        begin: str = "",
        exports: Path | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.clock = clock
        self.read_only = read_only
        self.player = Player(source, clock)
        self._state = state
        self._begin = begin
        self._exports = exports or Path.cwd()
        self._trouble = ""
        self.layout = Layout()
        if state is not None:
            try:
                self.layout = Layout.load(state)
            except LayoutError as err:
                self._trouble = str(err)
        self._drawing = False

    def on_mount(self) -> None:
        known = self.layout.theme
        self.theme = known if known in self.available_themes else THEME
        self.push_screen(HostPage())
        self.run_worker(self._follow(), name="follow", exit_on_error=True)
        # The age of "away since" grows while nothing comes.
        self.set_interval(1.0, self._draw_lines)
        self.set_interval(TICK, self._tick)
        if self._trouble:
            self.notify(self._trouble, severity="warning", markup=False)

    async def _follow(self) -> None:
        if self._begin or not self.source.live:
            await self._travel(self._first())
        async for update in self.source.updates():
            self.player.apply(update)
            self.draw_soon()

    async def _first(self) -> None:
        if self._begin:
            try:
                at = parse(self._begin, now=self.clock(), shown=self.clock())
            except ValueError as err:
                raise SourceError(str(err)) from None
            if at is not None or not self.source.live:
                await self.player.go(at)
        else:
            await self.player.begin()

    # --- drawing

    def draw_soon(self) -> None:
        """What comes within FRAME is drawn together."""
        if not self._drawing:
            self._drawing = True
            self.set_timer(FRAME, self._draw_now)

    def _draw_now(self) -> None:
        self._drawing = False
        self.draw()

    def draw(self) -> None:
        page = self.screen
        if isinstance(page, Page):
            page.draw()

    def _draw_lines(self) -> None:
        page = self.screen
        if isinstance(page, Page):
            page.draw_lines()

    # --- pages

    def open_row(self, row: Row) -> None:
        if row.kind == "call":
            self.push_screen(CallPage(row.id, row.call))
        elif row.kind == "session":
            self.push_screen(SessionPage(row.id, row.session))
        else:
            self.push_screen(TenantPage(row.id, row.tenant))

    def back(self) -> None:
        if len(self.screen_stack) > 2:
            self.pop_screen()

    def action_host(self) -> None:
        while not isinstance(self.screen, HostPage) and len(self.screen_stack) > 2:
            self.pop_screen()

    def action_gpu(self) -> None:
        if not isinstance(self.screen, GpuPage):
            self.push_screen(GpuPage())

    def action_doctor(self) -> None:
        if not isinstance(self.screen, DoctorPage):
            self.push_screen(DoctorPage())

    def action_help(self) -> None:
        self.push_screen(Help())

    def choose_columns(self) -> None:
        def chosen(names: tuple[str, ...] | None) -> None:
            if names is not None:
                self.layout.columns = names
                self.draw()

        self.push_screen(Columns(self.layout.columns), chosen)

    # --- time

    def _tick(self) -> None:
        if self.player.playing:
            self.run_worker(self._travel(self.player.tick(TICK)), name="tick")

    async def _travel(self, going: Coroutine[Any, Any, None]) -> None:
        try:
            await going
        except SourceError as err:
            self.player.playing = False
            self.notify(str(err), severity="warning", markup=False)
        self.draw()

    def _go(self, going: Coroutine[Any, Any, None]) -> None:
        self.run_worker(self._travel(going), name="travel")

    def action_pause(self) -> None:
        self._go(self.player.toggle())

    def action_step(self, direction: int) -> None:
        self._go(self.player.step(direction))

    def action_decision(self, direction: int) -> None:
        self._go(self.player.decision(direction))

    def action_speed(self, by: int) -> None:
        self.player.faster(by)
        self.notify(f"replay at {self.player.speed:g}x", timeout=2)
        self.draw()

    def action_now(self) -> None:
        self.player.now()
        self.draw()

    def action_jump(self) -> None:
        def moment(text: str) -> float | None:
            at = self.player.at
            return parse(text, now=self.clock(), shown=at if at is not None else self.clock())

        def answered(text: str | None) -> None:
            if text is None:
                return
            at = moment(text)
            if at is None:
                self.action_now()
            else:
                self._go(self.player.go(at))

        self.push_screen(Ask("jump to", "10m ago, 14:03, 2026-11-24 14:03:20, +30s, now", moment), answered)

    # --- acting

    def may_act(self) -> bool:
        """Says why not."""
        if self.read_only:
            why = "read-only: start the dashboard without --read-only to act"
        elif not self.source.live:
            why = "this is a recording: nothing can be done to it"
        elif self.player.in_past and self.player.moment is not None:
            why = "this is the past: press n, and act on what is"
        else:
            return True
        self.notify(why, severity="warning", markup=False)
        return False

    def ask_to_act(self, verb: Verb, rows: Sequence[Row]) -> None:
        if not rows or not self.may_act():
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._act([Action(verb=verb, target=row.id) for row in _outermost(rows)], rows)

        self.push_screen(Confirm(acting.question(verb, rows)), answered)

    def ask_to_change(self, what: Verb, rows: Sequence[Row]) -> None:
        if not rows or not self.may_act():
            return
        read = acting.parse_limits if what == "limits" else acting.parse_priority
        hint = "brake 512M, memory 1G, cpu 1.5, pids 100; off lifts" if what == "limits" else "0 to 100"

        def confirmed(actions: Sequence[Action]) -> Callable[[bool | None], None]:
            return lambda yes: self._act(actions, rows) if yes else None

        def answered(text: str | None) -> None:
            if text is not None:
                actions = [read(text, row) for row in rows]
                told = [acting.describe(a, r) for a, r in zip(actions[: acting.MAX_NAMED], rows, strict=False)]
                if len(rows) > acting.MAX_NAMED:
                    told.append(f"and the same of {len(rows) - acting.MAX_NAMED} more")
                self.push_screen(Confirm("\n".join(told)), confirmed(actions))

        title = f"{what} of {rows[0].kind} {rows[0].label}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
        self.push_screen(Ask(title, hint, lambda text: [read(text, row) for row in rows]), answered)

    def _act(self, actions: Sequence[Action], rows: Sequence[Row]) -> None:
        labels = {row.id: row.label for row in rows}

        async def work() -> None:
            for action in actions:
                label = labels[action.target]
                try:
                    reached = await self.source.act(action)
                except SourceError as err:
                    kind = "warning" if isinstance(err, NotOffered) else "error"
                    self.notify(f"{action.verb} {label}: {err}", severity=kind, markup=False)  # type: ignore[arg-type]
                    continue
                done = f"{len(reached)} call" + ("" if len(reached) == 1 else "s")
                words = "done" if action.verb in ("limits", "priority") else done
                self.notify(f"{action.verb} {label}: {words}", markup=False)

        self.run_worker(work(), name="act")

    # --- export

    def action_export(self) -> None:
        def chosen(form: str | None) -> None:
            if form:
                self._export(form)

        self.push_screen(Export(str(self._exports)), chosen)

    def _export(self, form: str) -> None:
        page = cast("Page", self.screen)
        rows, names = page.exported()
        if form == "svg":
            text = self.export_screenshot()
        elif not rows:
            self.notify("there is no table here to export; SVG makes a picture of any page", severity="warning")
            return
        else:
            text = to_csv(rows, names) if form == "csv" else to_json(rows, names, at=page.board.at)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.localtime(self.clock()))
        if self.is_web:  # the reader is at the browser's machine, not at this one
            kind = {"svg": "image/svg+xml", "csv": "text/csv", "json": "application/json"}[form]
            self.deliver_text(io.StringIO(text), save_filename=f"corral-{stamp}.{form}", mime_type=kind)
            return
        path = self._exports / f"corral-{stamp}.{form}"
        number = 1
        while True:
            try:
                # never over a file that is there, and never through a link
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                break
            except FileExistsError:
                number += 1
                path = self._exports / f"corral-{stamp}-{number}.{form}"
            except OSError as err:
                self.notify(f"{path}: {err.strerror}; start corral top where you may write", severity="error")
                return
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        self.notify(f"written: {path}", markup=False)

    # --- palette, end

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        yield SystemCommand("theme", "choose the colours", self.action_change_theme)
        for key in KEYS:
            if key.action == "command_palette":
                continue
            title = key.action.replace("_", " ").partition("(")[0]
            yield SystemCommand(title, f"{key.words}  ({key.shown})", _does(screen, key.target))

    async def action_quit(self) -> None:
        self._remember()
        self.exit()

    def _remember(self) -> None:
        if self._state is None:
            return
        self.layout.theme = self.theme
        try:
            self.layout.save(self._state)
        except LayoutError as err:
            self.log.warning(str(err))

    async def on_unmount(self) -> None:
        await self.source.close()


def _does(screen: Screen[Any], action: str) -> Callable[[], None]:
    """The palette acts on the page that it was called from."""

    def run() -> None:
        screen.call_later(screen.run_action, action)

    return run


def _outermost(rows: Sequence[Row]) -> list[Row]:
    """Without those whose session or tenant is among them, too: nothing is done twice."""
    ids = {row.id for row in rows}
    kept = []
    for row in rows:
        above = [owner.id for owner in (row.session, row.tenant) if owner is not None and owner.id != row.id]
        if not any(owner in ids for owner in above):
            kept.append(row)
    return kept


def run(target: str, *, interval: float = 1.0, read_only: bool = False, begin: str = "") -> int:
    """The dashboard of the daemon at ``target`` ("unix:/path" or "HOST:PORT"), until it is quit. ``begin``: the moment
    to start at, as an operator writes it. Gives an exit status: 0, or 1 when it failed. Raises DashboardError
    where it cannot even try."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would write its own view of things over the screen
    _check_begin(begin)
    try:
        source = LiveSource(target, interval=interval)
    except SourceError as err:
        raise DashboardError(str(err)) from None
    return _shown(CorralApp(source, read_only=read_only, state=default_path(), begin=begin))


def replay(path: Path, *, begin: str = "") -> int:
    """The recording ``path``, until it is quit. Raises DashboardError."""
    _check_begin(begin)
    try:
        source = FileSource(path)
    except SourceError as err:
        raise DashboardError(str(err)) from None
    return _shown(CorralApp(source, state=default_path(), begin=begin))


def _shown(app: CorralApp) -> int:
    # What is imported lives until the end: without this each full collection walks over it, in the way of a key press.
    gc.collect()
    gc.freeze()
    app.run()
    return app.return_code or 0


def _check_begin(begin: str) -> None:
    now = time.time()
    try:
        parse(begin, now=now, shown=now)
    except ValueError as err:
        raise DashboardError(f"--at {err}") from None
