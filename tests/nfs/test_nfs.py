"""The ledger on NFSv4.2 and NFSv3, in the lab: `python -m pytest -m nfs`.

The short set of it is `-m "nfs and not exhaustive"`.
"""

from __future__ import annotations

import pytest

from tests.nfs.lab import tell

pytestmark = [pytest.mark.nfs, pytest.mark.timeout(1000)]

VERSIONS = [
    pytest.param(("--vers", "4.2", "--lease", "10"), id="4.2"),
    pytest.param(("--vers", "3"), id="3"),
]


@pytest.mark.exhaustive  # minutes each, and of no use on a machine that has no processor to spare
@pytest.mark.parametrize("tasks", [45, 300])
@pytest.mark.parametrize("options", VERSIONS)
def test_three_hosts_drain_a_queue_whatever_goes_wrong(
    options: tuple[str, ...], tasks: int
) -> None:
    found = tell("drain", str(tasks), options=(*options, "--clients", "3"), timeout_s=900)
    assert found["states"] == {"completed": tasks}, found
    assert found["overlaps"] == [], found
    assert found["integrity"] == "ok"
    assert found["failures"] == 0, "nothing was the tasks' fault"
    assert found["outcomes"]["completed"] == tasks
    # The killed worker's task, and those of the host that was cut off.
    assert {"client1", "client3"} <= set(found["lost_by"]), found


@pytest.mark.parametrize("options", VERSIONS[:1])
def test_a_stray_program_that_keeps_the_file_open_does_no_harm(options: tuple[str, ...]) -> None:
    found = tell("stray", options=options)
    assert found["kept"] == 0, found
    assert found["broken"] > 0, "without SQLite's own lock old pages are read: that is why"


@pytest.mark.parametrize(
    "options", [VERSIONS[0], pytest.param(("--vers", "3"), id="3", marks=pytest.mark.exhaustive)]
)
def test_one_kind_of_lock_is_enough_and_no_connection_may_be_kept(options: tuple[str, ...]) -> None:
    found = tell("counting", options=options)
    for rule in ("kept", "flock-faked"):
        assert found[rule] == {"added": 100, "lost": 0}, found
    assert found["kept-connection"]["lost"] > 0, "old pages of its own: that is why"
    assert found["both-faked"]["lost"] > 0, "without any lock"
    if options[1] == "4.2":  # v3 lost one of 1,200: file times that are too coarse
        assert found["fcntl-faked"] == {"added": 100, "lost": 0}, found


def test_a_journal_that_was_missing_is_found_once_the_folder_was_opened() -> None:
    found = tell("hidden", options=("--vers", "4.2"))
    assert found["kept"] == 0, found
    assert found["broken"] > 0, "a torn file was read: that is why the folder is opened"


def test_a_holder_whose_machine_is_gone_is_named() -> None:
    found = tell("gone-holder", options=("--vers", "3", "--clients", "3"))
    for said in found["said"]:  # everyone who waits
        assert "client1" in said, found
        assert "'claim' since" in said
        assert "nothing was changed" in said


@pytest.mark.parametrize("options", VERSIONS)
def test_hosts_stand_in_one_line(options: tuple[str, ...]) -> None:
    found = tell("line", options=options)
    assert found["came"] == [0, 1, 2], found
    assert found["one left"] == [0, 1], found
    assert found["one is cut off"] == 1, found
    assert found["passed over"] == 1, "only the one before it, not who is cut off"
    assert found["the first now"] == 0, found
    assert found["back"] == 0, found


@pytest.mark.parametrize("options", VERSIONS)
def test_a_change_half_made_by_a_host_that_died_is_rolled_back_by_another(
    options: tuple[str, ...],
) -> None:
    found = tell("crash", options=options)
    assert found["PERSIST"] == 0, found
    if options[1] == "4.2":
        assert found["DELETE"] > 0, "a journal that was missing is not seen: that is why"


def test_doctor_proves_what_two_hosts_share() -> None:
    found = tell("doctor", options=("--vers", "4.2"))
    for findings in found["findings"]:
        for what in ("exclusion", "flock between hosts", "fcntl between hosts", "visibility"):
            assert findings[what] == "good", found
        assert findings["recovery"] == "good"
    assert found["second"] is None, "the second host may work, too"


def test_without_shared_locks_doctor_is_red_and_the_second_host_is_refused() -> None:
    found = tell("doctor", options=("--vers", "3", "--opts-for", "2:vers=3,nolock"))
    for findings in found["findings"]:
        assert findings["exclusion"] == "bad", found
    assert found["exit_codes"] == [2, 2]
    assert found["second"] == 69, found
    assert "no lock" in found["said"]
    assert "nothing was started" in found["said"]


@pytest.mark.exhaustive
def test_odd_mounts_and_hosts_of_one_name_are_told() -> None:
    found = tell(
        "odd",
        options=("--vers", "4.2", "--v3", "--clients", "3", "--opts-for", "2:vers=4.2,nocto",
                 "--opts-for", "3:vers=3,nolock,local_lock=all"),
        timeout_s=600,
    )  # fmt: skip
    told = {
        int(client): (code, "\n".join(lines)) for client, (code, lines) in found["alone"].items()
    }
    assert "bad mount" not in told[1][1], told
    assert told[2][0] == told[3][0] == 2, told
    assert "bad mount: mounted with nocto" in told[2][1]
    assert "bad mount: mounted with nolock" in told[3][1]
    assert any(
        "bad hosts: both are 'client1' to the NFSv4 server" in line for line in found["together"]
    ), found
    code, said = found["refused"]
    assert code == 69
    assert "would destroy it; nothing was started" in said
    assert "--unsafe starts all the same" in said
    assert "Warning: mounted with nolock" in found["insisted"]
    assert found["codes"] == [0, 0, 0], "workers of one host name do not mind"
    assert found["states"] == {"completed": 6}
    assert found["attempts"] == {"1": 6}, found
    assert found["integrity"] == "ok"


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", VERSIONS)
def test_a_log_is_followed_from_another_host_over_attempts(options: tuple[str, ...]) -> None:
    found = tell("follow", options=options)
    assert found["code"] == 0, found
    lines = [line for line in found["logs"].splitlines() if line.startswith("attempt ")]
    assert lines == [f"attempt {n} line {k}" for n in (1, 2) for k in range(8)], found["logs"]
    assert found["codes"][0] == 0, "the task is completed: nothing more will come"
    assert found["events"].count("talk_0_0") >= 4, found["events"]
