"""NVML: the real bindings against a library of ours (tests/unit/nvml_fake)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.nvml_fake.harness import ROOT, Fake, build

NO_INSTANCE = 0xFFFFFFFF

ONE = f"""\
driver 580.65
count 1
dev 0 uuid GPU-aaaa
dev 0 name NVIDIA H100 80GB HBM3
dev 0 mem 85899345920 1073741824
dev 0 util 40 25
dev 0 power 350000
dev 0 limit 700000
dev 0 energy 5000000
dev 0 temp 51
dev 0 gpm 1
dev 0 switches 0 1000 100000 500
dev 0 proc 4242 536870912 {NO_INSTANCE} {NO_INSTANCE}
dev 0 share 1000000 4242 30 10
"""
LATER = (
    ONE.replace("energy 5000000", "energy 5350000")
    .replace("switches 0 1000 100000 500", "switches 0 1060 103000 680")
    .replace("share 1000000", "share 2000000")
)
TWO = ONE.replace("count 1", "count 2") + "dev 1 uuid GPU-bbbb\ndev 1 mem 1000 10\ndev 1 energy 10\n"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the fake libnvidia-ml.so.1 cannot be built")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the fake libnvidia-ml.so.1 cannot be built")
    return build(tmp_path_factory.mktemp("nvml-old"), old_driver=True)


@pytest.fixture
def fake(library: Path, tmp_path: Path) -> Fake:
    return Fake(library, tmp_path)


def device(sample: dict[str, Any], index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = sample["devices"][index]
    return found


def test_a_device_in_units_of_the_house(fake: Fake) -> None:
    report = fake.report(ONE, LATER)
    info = report["devices"][0]
    assert info["uuid"] == "GPU-aaaa"
    assert info["name"] == "NVIDIA H100 80GB HBM3"
    assert info["bus_id"] == "00000000:01:00.0"
    assert info["compute_capability"] == [9, 0]
    assert info["power_limit"] == 700.0
    assert (info["mig_enabled"], info["gpm_supported"]) == (False, True)
    sample = device(report["samples"][1])
    assert sample["state"] == "ok"
    assert (sample["memory_total"], sample["memory_used"]) == (85899345920, 1073741824)
    assert (sample["sm_utilisation"], sample["memory_utilisation"]) == (0.4, 0.25)
    assert (sample["power"], sample["energy"], sample["temperature"]) == (350.0, 5350.0, 51)
    assert sample["processes"] == [
        {"pid": 4242, "bytes": 536870912, "graphics": False, "gpu_instance_id": None, "compute_instance_id": None}
    ]
    assert sample["shares"] == [{"pid": 4242, "sm": 0.3, "memory": 0.1, "samples": 1}]


def test_context_switches_are_those_between_two_samples(fake: Fake) -> None:
    first, second = fake.sample(ONE, LATER)
    assert device(first)["context_switches"]["why"] == "no_data"
    assert device(second)["context_switches"] == [
        {
            "engine": 0,
            "requests": 60.0,
            "cycles_elapsed": 3000.0,
            "cycles_active": 180.0,
            "cycles_per_request": 3.0,
            "active": 0.06,
            "gpu_instance_id": None,
        }
    ]


def test_no_switch_no_cycles_per_request(fake: Fake) -> None:
    _, second = fake.sample(ONE, ONE)
    (switches,) = device(second)["context_switches"]
    assert switches["requests"] == 0.0
    assert switches["cycles_per_request"] is None  # the device answers NaN


def test_gpm_samples_are_freed(fake: Fake) -> None:
    calls = fake.report(ONE, LATER, LATER)["calls"]
    assert calls["nvmlGpmSampleAlloc"] == calls["nvmlGpmSampleFree"] == 3


def test_usage_is_charged_to_pids_and_adds_up(fake: Fake) -> None:
    usage = {one["owner"]: one for one in fake.report(ONE, LATER)["usage"]}
    assert usage[4242]["gpu_seconds"] == pytest.approx(0.3)
    assert usage[4242]["joules"] == pytest.approx(0.3 * 350)
    assert usage[4242]["memory_bytes"] == 536870912
    assert usage[None]["joules"] == pytest.approx(0.7 * 350)


def test_process_samples_are_averaged_once_and_garbage_is_left_out(fake: Fake) -> None:
    first = ONE + "dev 0 share 1100000 4242 50 10\ndev 0 share 1200000 7 100 60\ndev 0 share 1300000 8 4000000000 0\n"
    one, two, three = fake.sample(first, first, first + "dev 0 share 1400000 7 20 0\n")
    assert device(one)["shares"] == [
        {"pid": 7, "sm": 1.0, "memory": 0.6, "samples": 1},
        {"pid": 4242, "sm": 0.4, "memory": 0.1, "samples": 2},
    ]
    assert device(two)["shares"] == []  # the same samples are not counted again: nobody was busy since
    assert device(three)["shares"] == [{"pid": 7, "sm": 0.2, "memory": 0.0, "samples": 1}]


def test_memory_that_the_driver_does_not_tell_is_none(fake: Fake) -> None:
    (sample,) = fake.sample(ONE + f"dev 0 gproc 5 {2**64 - 1} {NO_INSTANCE} {NO_INSTANCE}\n")
    assert device(sample)["processes"][1] == {
        "pid": 5,
        "bytes": None,
        "graphics": True,
        "gpu_instance_id": None,
        "compute_instance_id": None,
    }


def test_no_processes_are_an_empty_list(fake: Fake) -> None:
    quiet = "\n".join(line for line in ONE.splitlines() if "proc" not in line and "share" not in line) + "\n"
    (sample,) = fake.sample(quiet)
    assert (device(sample)["processes"], device(sample)["shares"]) == ([], [])


def test_mig_instances(fake: Fake) -> None:
    mig = (
        ONE.replace("proc 4242 536870912 4294967295 4294967295", "proc 4242 536870912 2 0")
        + "dev 0 mig 1\ndev 0 slice 0 MIG-x 1 0 20000 500 42\ndev 0 slice 3 MIG-y 2 0 40000 700 60\n"
        + "error * nvmlDeviceGetUtilizationRates 3\n"
    )
    _, sample = fake.sample(mig, mig.replace("switches 0 1000", "switches 0 1010"))
    found = device(sample)
    assert [(one["uuid"], one["index"], one["gpu_instance_id"]) for one in found["mig"]] == [
        ("MIG-x", 0, 1),
        ("MIG-y", 3, 2),
    ]
    assert [(one["multiprocessors"], one["memory_total"], one["memory_used"]) for one in found["mig"]] == [
        (42, 20000, 500),
        (60, 40000, 700),
    ]
    assert found["processes"][0]["gpu_instance_id"] == 2
    assert found["sm_utilisation"]["why"] == "unsupported"
    assert [(one["gpu_instance_id"], one["requests"]) for one in found["context_switches"]] == [(1, 10.0), (2, 20.0)]


def test_an_unsupported_call_is_said_and_not_made_again(fake: Fake) -> None:
    scenario = ONE + "error 0 nvmlDeviceGetTotalEnergyConsumption 3\n"
    report = fake.report(scenario, scenario, scenario)
    for sample in report["samples"]:
        assert device(sample)["energy"] == {
            "why": "unsupported",
            "call": "nvmlDeviceGetTotalEnergyConsumption",
            "code": 3,
        }
        assert device(sample)["power"] == 350.0
    assert report["calls"]["nvmlDeviceGetTotalEnergyConsumption"] == 1
    assert report["calls"]["nvmlDeviceGetPowerUsage"] == 3


def test_without_an_energy_counter_joules_come_from_power(fake: Fake) -> None:
    scenario = ONE + "error 0 nvmlDeviceGetTotalEnergyConsumption 3\n"
    usage = fake.report(scenario, scenario)["usage"]
    assert sum(one["joules"] for one in usage) == pytest.approx(350.0)


@pytest.mark.parametrize(
    ("code", "why"), [(4, "no_permission"), (21, "no_data"), (27, "no_data"), (999, "failed"), (17, "failed")]
)
def test_a_passing_trouble_is_asked_again(fake: Fake, code: int, why: str) -> None:
    first, second = fake.sample(ONE + f"error 0 nvmlDeviceGetPowerUsage {code}\n", ONE)
    assert (device(first)["power"]["why"], device(first)["power"]["code"]) == (why, code)
    assert device(first)["state"] == "ok"
    assert device(second)["power"] == 350.0


def test_an_old_driver_lacks_what_is_new_and_gives_the_rest(old_library: Path, tmp_path: Path) -> None:
    report = Fake(old_library, tmp_path).report(ONE, LATER)
    sample = device(report["samples"][1])
    assert sample["context_switches"]["why"] == "old_driver"
    assert sample["shares"] == [{"pid": 4242, "sm": 0.3, "memory": 0.1, "samples": 1}]  # by the older call
    assert sample["energy"] == 5350.0
    assert report["devices"][0]["gpm_supported"]["why"] == "old_driver"


def test_a_device_without_gpm(fake: Fake) -> None:
    _, sample = fake.sample(ONE.replace("gpm 1", "gpm 0"), LATER.replace("gpm 1", "gpm 0"))
    assert device(sample)["context_switches"]["why"] == "unsupported"


def test_a_device_that_vanishes_is_lost_and_the_other_goes_on(fake: Fake) -> None:
    gone = TWO + "error 1 * 15\n"
    report = fake.report(TWO, gone, gone)
    first, second, third = report["samples"]
    assert [one["state"] for one in first["devices"]] == ["ok", "ok"]
    for sample in (second, third):
        assert sample["state"]["availability"] == "ready"
        assert device(sample, 0)["state"] == "ok"
        assert device(sample, 0)["power"] == 350.0
        lost = device(sample, 1)
        assert (lost["state"], lost["uuid"], lost["memory_used"]["why"]) == ("lost", "GPU-bbbb", "gpu_lost")
    # Asked once more to find out, then left alone until the next look.
    assert report["calls"]["nvmlDeviceGetPowerUsage"] == 3 + 1


def test_a_device_lost_in_the_middle_of_a_sample(fake: Fake) -> None:
    (_, sample) = fake.sample(ONE, ONE + "error 0 nvmlDeviceGetTemperature 15\n")
    assert device(sample)["state"] == "lost"
    assert device(sample)["power"]["why"] == "gpu_lost"


def test_after_the_look_a_removed_device_is_no_longer_listed_and_one_that_returns_is(fake: Fake) -> None:
    gone = TWO + "error 1 * 15\n"
    _, second, third, fourth = fake.sample(TWO, gone, ONE, TWO, rescan_seconds=0.0)
    assert [one["state"] for one in second["devices"]] == ["ok", "lost"]
    assert [one["uuid"] for one in third["devices"]] == ["GPU-aaaa"]
    assert [one["uuid"] for one in fourth["devices"]] == ["GPU-aaaa"]  # all is well: nothing makes it look again


def test_a_lost_device_that_comes_back(fake: Fake) -> None:
    _, second, third = fake.sample(ONE, ONE + "error 0 * 15\n", ONE, rescan_seconds=0.0)
    assert device(second)["state"] == "lost"
    assert (device(third)["state"], device(third)["power"]) == ("ok", 350.0)


def test_a_device_that_needs_a_reset(fake: Fake) -> None:
    _, sample = fake.sample(ONE, ONE + "error 0 nvmlDeviceGetMemoryInfo 16\n")
    assert device(sample)["state"] == "reset_required"


def test_a_device_that_cannot_be_opened_is_listed_with_the_reason(fake: Fake) -> None:
    (sample,) = fake.sample(TWO + "error 1 nvmlDeviceGetHandleByIndex_v2 15\n")
    assert device(sample, 0)["state"] == "ok"
    broken = device(sample, 1)
    assert (broken["state"], broken["uuid"], broken["energy"]["call"]) == ("lost", "", "nvmlDeviceGetHandleByIndex")


@pytest.mark.parametrize(
    ("scenario", "availability", "word"),
    [
        ("init 9\n", "no_driver", "kernel module is not loaded"),
        ("init 18\n", "version_mismatch", "different versions"),
        ("init 4\n", "no_permission", "denied"),
        ("init 28\n", "no_gpu", "no GPU"),
        ("init 999\n", "failed", "code 999"),
        ("count 0\n", "no_gpu", "no GPU"),
        ("count 1\nerror * nvmlDeviceGetCount_v2 999\n", "failed", "count the GPUs"),
    ],
)
def test_a_host_without_a_usable_gpu_is_a_state(fake: Fake, scenario: str, availability: str, word: str) -> None:
    (sample,) = fake.sample(scenario)
    assert sample["state"]["availability"] == availability
    assert word in sample["state"]["message"]
    assert sample["state"]["remedy"]
    assert sample["devices"] == []


def test_a_driver_that_is_loaded_later_is_found(fake: Fake) -> None:
    first, second = fake.sample("init 9\n", ONE, rescan_seconds=0.0)
    assert first["state"]["availability"] == "no_driver"
    assert [one["uuid"] for one in second["devices"]] == ["GPU-aaaa"]


def test_a_missing_driver_is_not_looked_for_at_every_sample(fake: Fake) -> None:
    assert fake.report("init 9\n", "init 9\n", "init 9\n")["calls"] == {"nvmlInit": 1}


def test_a_shutdown_by_others_in_the_process_is_survived(fake: Fake) -> None:
    first, second, third = fake.sample(ONE, ONE + "error 0 * 1\n", ONE, rescan_seconds=0.0)
    assert device(first)["state"] == "ok"
    assert device(second)["memory_used"]["code"] == 1
    assert device(third)["power"] == 350.0


def test_no_library_at_all() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from gpu.nvml import Nvml; s = Nvml().sample_now(); print(s.state.availability, s.devices)",
        ],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": "",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    if "ready" in done.stdout:
        pytest.skip("this host has NVIDIA's driver")
    assert done.stdout.split()[0] in ("no_library", "no_driver", "no_gpu")


def test_xid_events_name_the_device(fake: Fake) -> None:
    scenario = (
        TWO + f"event 1 79 {NO_INSTANCE} {NO_INSTANCE}\nevent 0 31 2 0\nevent 0 9999 {NO_INSTANCE} {NO_INSTANCE}\n"
    )
    one, two, three = fake.events(scenario, expected=3)
    assert (one["kind"], one["uuid"], one["xid"], one["gpu_instance_id"]) == ("xid", "GPU-bbbb", 79, None)
    assert "fallen off the bus" in one["meaning"]
    assert (two["uuid"], two["xid"], two["gpu_instance_id"], two["compute_instance_id"]) == ("GPU-aaaa", 31, 2, 0)
    assert (three["xid"], three["meaning"]) == (9999, "see NVIDIA's catalogue of XID errors")


def test_a_lost_gpu_at_the_event_source_is_an_event(fake: Fake) -> None:
    (event,) = fake.events(ONE + "error * nvmlEventSetWait_v2 15\n", expected=1)
    assert (event["kind"], event["uuid"], event["xid"]) == ("lost", None, 0)


def test_events_go_on_after_nvml_was_initialised_anew(fake: Fake) -> None:
    """A lost device makes the sampler shut NVML down and open it again, under a thread that waits for events."""
    event = f"event 0 48 {NO_INSTANCE} {NO_INSTANCE}\n"
    (one,) = fake.events(ONE, ONE + "error 0 * 15\n", ONE, ONE + event, expected=1, rescan_seconds=0.0)
    assert (one["uuid"], one["xid"]) == ("GPU-aaaa", 48)


def test_bindings_stay_unloaded_until_a_sample_is_asked_for() -> None:
    code = "import sys, gpu.nvml; n = gpu.nvml.Nvml(); assert 'pynvml' not in sys.modules; print(n.state.availability)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "closed"


def test_the_check_prints_a_table_and_fails_for_a_lost_gpu(fake: Fake) -> None:
    def check(scenario: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpu.nvml.check", "--seconds", "0.01"],
            env=fake.environment(scenario),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    well = check(ONE)
    assert well.returncode == 0, well.stderr
    assert "GPU 0  NVIDIA H100 80GB HBM3  GPU-aaaa  ok" in well.stdout
    assert "350.00 W / 700.00 W" in well.stdout
    lost = check(TWO + "error 1 nvmlDeviceGetMemoryInfo 15\n")
    assert lost.returncode == 1
    assert "GPU-bbbb  lost" in lost.stdout
    none = check("init 9\n")
    assert none.returncode == 3
    assert none.stdout.startswith("no GPU to check: NVIDIA's kernel module is not loaded")
