"""The arithmetic of process trees over a host that the test makes up: who belongs where, and nothing counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.processes import procfs
from controller.processes.procfs import ProcIo, ProcStat
from controller.processes.tree import ZERO, Forest, Tree, Waiter, waiter_of

NAME = b"CORRAL_CALL"


class Host:
    """Processes by number. ``use``: own user ticks; faults are ten times that; reaping adds to the parent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stats: dict[int, ProcStat] = {}
        self.io: dict[int, ProcIo] = {}
        self.environment: dict[int, bytes] = {}
        monkeypatch.setattr(procfs, "scan", lambda: dict(self.stats))
        monkeypatch.setattr(procfs, "read_stat", self.stats.get)
        monkeypatch.setattr(procfs, "read_io", self.io.get)
        monkeypatch.setattr(procfs, "owner", lambda pid: 1000 if pid in self.stats else None)
        monkeypatch.setattr(procfs, "environment_value", lambda pid, _: self.environment.get(pid))

    def run(self, pid: int, parent: int, *, start: int = 100, use: int = 0, rss: int = 0) -> ProcStat:
        self.stats[pid] = ProcStat(pid, "S", parent, start, use, 0, 0, 0, use * 10, 0, 0, 0, rss)
        return self.stats[pid]

    def work(self, pid: int, ticks: int) -> None:
        was = self.stats[pid]
        self.stats[pid] = was._replace(user=was.user + ticks, faults=was.faults + 10 * ticks)

    def end(self, pid: int, *, waited: bool = True, init: int = 1) -> None:
        gone = self.stats.pop(pid)
        parent = self.stats.get(gone.ppid)
        if waited and parent is not None:
            self.stats[parent.pid] = parent._replace(
                child_user=parent.child_user + gone.user + gone.child_user,
                child_faults=parent.child_faults + gone.faults + gone.child_faults,
            )
        for orphan in [s for s in self.stats.values() if s.ppid == pid]:
            self.stats[orphan.pid] = orphan._replace(ppid=init)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(monkeypatch)
    made.run(1, 0, start=0)
    made.run(50, 1, start=10)  # an agent's shell
    return made


def planted(host: Host, forest: Forest, pid: int, *, parent: int = 50, begun: int = 90) -> Tree:
    tree = Tree(begun=begun)
    forest.add(tree)
    forest.place(tree, host.run(pid, parent))
    return tree


def test_children_come_with_their_parents_and_stay_when_those_end(host: Host) -> None:
    forest = Forest(NAME)
    tree = planted(host, forest, 100)
    host.run(101, 100, use=5)
    host.run(102, 101, use=5)
    host.run(60, 50, use=99)
    forest.look()
    assert sorted(tree.members) == [100, 101, 102]
    host.end(101)
    forest.look()
    assert host.stats[102].ppid == 1
    host.run(103, 102, use=1)
    forest.look()
    assert sorted(tree.members) == [100, 102, 103]
    assert tree.use().user == 11
    assert forest.proven_tree(103) is tree
    assert forest.proven_tree(60) is None


def test_what_a_parent_took_over_is_not_added_again(host: Host) -> None:
    forest = Forest(NAME)
    tree = planted(host, forest, 100)
    host.run(101, 100, use=7)
    forest.look()
    host.work(101, 3)  # after it was last seen
    host.end(101)
    forest.look()
    assert (tree.use().user, tree.use().faults) == (10, 100)
    host.run(102, 100, use=4)
    forest.look()
    host.end(102, waited=False)
    forest.look()
    assert tree.use().user == 14


def test_a_whole_branch_that_vanishes_at_once_counts_once(host: Host) -> None:
    forest = Forest(NAME)
    tree = planted(host, forest, 100)
    host.run(101, 100, use=2)
    host.run(102, 101, use=3)
    forest.look()
    for pid in (102, 101):
        host.end(pid)
    forest.look()
    assert tree.use().user == 5
    host.end(100)
    forest.look()
    assert tree.use().user == 5
    assert tree.members == {}


def test_a_call_inside_a_call_is_charged_to_itself_alone(host: Host) -> None:
    """A launcher in the outer call waits for the inner one's main process: the kernel adds that to the launcher."""
    forest = Forest(NAME)
    outer = planted(host, forest, 100)
    host.run(110, 100, use=1)  # the launcher
    forest.look()
    inner = planted(host, forest, 111, parent=110)
    assert (sorted(outer.members), sorted(inner.members)) == ([100, 110], [111])
    host.work(111, 20)
    forest.look()
    assert (outer.use().user, inner.use().user) == (1, 20)
    host.end(111)
    forest.look()
    assert (outer.use().user, inner.use().user) == (1, 20)
    host.end(110)
    forest.look()
    assert (outer.use().user, inner.use().user) == (1, 20)


def test_the_past_of_a_placed_process_and_of_a_moved_one_stays_behind(host: Host) -> None:
    forest = Forest(NAME)
    call, own = Tree(begun=90), Tree(begun=90)
    forest.add(call)
    forest.add(own)
    forest.place(call, host.run(100, 50, use=30))
    host.run(101, 100, start=80, use=9)  # its child, older than the call
    host.work(100, 5)
    forest.look()
    assert call.use().user == 5
    (member,) = [m for m in call.members.values() if m.pid == 101]
    forest.move(member, own)
    host.work(101, 2)
    forest.look()
    assert (call.use().user, own.use().user) == (5, 2)


def test_a_number_that_is_used_again_is_another_process(host: Host) -> None:
    forest = Forest(NAME)
    tree = planted(host, forest, 100)
    host.work(100, 4)
    forest.look()
    host.end(100, waited=False)
    host.run(100, 1, start=500, use=77)
    assert not forest.refresh(tree)
    assert forest.proven_tree(100) is None
    forest.look()
    assert (tree.members, tree.use().user) == ({}, 4)


def test_an_environment_is_believed_from_the_same_user_and_younger_than_the_call_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    forest = Forest(NAME)
    tree = planted(host, forest, 100)
    tree.marker, tree.uid = b"c-1", 1000
    for pid, start in ((200, 89), (201, 90), (202, 91)):
        host.run(pid, 1, start=start)
        host.environment[pid] = b"c-2" if pid == 202 else b"c-1"
    forest.look()
    assert sorted(tree.members) == [100, 201]
    assert forest.proven_tree(201) is None
    host.run(203, 201)
    forest.look()
    assert sorted(tree.members) == [100, 201, 203]
    assert forest.proven_tree(203) is None  # its parent was only believed
    host.run(204, 1, start=95)
    host.environment[204] = b"c-1"
    monkeypatch.setattr(procfs, "owner", lambda _: 1001)
    forest.look()
    assert 204 not in tree.members


def test_a_launcher_s_account_replaces_what_was_seen(host: Host) -> None:
    forest = Forest(NAME)
    launcher = host.run(99, 50)
    tree = planted(host, forest, 100, parent=99)
    waiter = waiter_of(99)
    assert waiter == Waiter(99, launcher.start, ZERO)
    tree.main, tree.waiter = 100, waiter
    host.work(100, 40)
    host.end(100)
    forest.catch_main(tree)
    host.end(99)  # the launcher is gone, too, before anybody looks at the whole host
    forest.look()
    assert (tree.use().user, tree.use().faults) == (40, 400)


@pytest.mark.parametrize("reaped", [False, True])
def test_children_that_ended_with_the_main_process_are_in_its_last_figures(host: Host, reaped: bool) -> None:
    """Seen as a zombie or through its launcher: either way what its child used is in it, and is not added again."""
    forest = Forest(NAME)
    host.run(99, 50)
    tree = planted(host, forest, 100, parent=99)
    tree.main, tree.waiter = 100, waiter_of(99)
    host.run(101, 100, use=5)
    forest.look()
    host.work(101, 3)
    host.end(101)
    host.work(100, 1)
    if reaped:
        host.end(100)
    else:
        host.stats[100] = host.stats[100]._replace(state="Z")
    forest.catch_main(tree)
    forest.look()
    assert tree.use().user == 9
    if not reaped:
        host.end(100)
        forest.look()
        assert tree.use().user == 9


def test_a_zombie_is_no_process_but_its_use_counts(host: Host) -> None:
    forest = Forest(NAME)
    tree = planted(host, forest, 100)
    host.work(100, 6)
    host.stats[100] = host.stats[100]._replace(state="Z")
    forest.look()
    assert tree.alive == []
    assert tree.use().user == 6
    assert not forest.refresh(tree)


def test_bytes_are_known_where_the_kernel_shows_them_and_memory_peaks(host: Host) -> None:
    forest = Forest(NAME)
    tree = planted(host, forest, 100)
    forest.look()
    assert (tree.io_known, tree.use().read) == (False, 0)
    host.io[100] = ProcIo(1, 2, 3, 4)
    host.stats[100] = host.stats[100]._replace(rss=4096)
    forest.look()
    assert tree.io_known
    assert tree.use()[4:] == (1, 2, 3, 4)
    del host.io[100]  # it became another user's
    host.stats[100] = host.stats[100]._replace(rss=1024)
    forest.look()
    assert tree.use()[4:] == (1, 2, 3, 4)
    assert (tree.rss, tree.rss_peak) == (1024, 4096)


STEP = st.tuples(st.sampled_from(["fork", "work", "end", "lose", "look"]), st.integers(0, 7), st.integers(1, 9))


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_with_a_look_after_every_step_the_sum_is_exact_and_never_falls(steps: list[tuple[str, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        host = Host(patch)
        host.run(1, 0, start=0)
        host.run(50, 1, start=10)
        forest = Forest(NAME)
        tree = planted(host, forest, 100)
        used, last, pid = 0, 0, 100
        for what, which, amount in steps:
            here = sorted(p for p in host.stats if p >= 100)
            chosen = here[which % len(here)] if here else None
            if chosen is not None and what == "fork":
                pid += 1
                host.run(pid, chosen, use=amount)
                used += amount
            elif chosen is not None and what == "work":
                host.work(chosen, amount)
                used += amount
            elif chosen is not None and what in {"end", "lose"}:
                host.end(chosen, waited=what == "end")
            forest.look()
            now = tree.use().user
            assert now == used
            assert now >= last
            last = now
