"""Proves that lanes are steered by hand: lanes, pause, resume, dead and redrive."""

from __future__ import annotations

from typing import Any

from binary import Binary

LANE = "gateway/chat"
BAD = '{"question": 5}'


def lane(served: Binary) -> dict[str, Any]:
    (found,) = [row for row in served.json("lanes")["lanes"] if row["role"] == "chat"]
    assert isinstance(found, dict)
    return found


def test_a_paused_lane_waits_and_goes_on(served: Binary):
    """`pause` stops a lane, `lanes` shows it, `resume` lets the message that waited through."""
    assert served.json("pause", LANE, "--reason", "maintenance")["changed"] is True
    assert "was paused before" in served.run("pause", LANE).stdout
    sent = served.json("send", f"{LANE}@demo", '{"question": "who pays late?"}')
    assert lane(served)["paused_at"] is not None
    assert lane(served)["waiting"] == 1
    assert "all" in served.run("lanes").stdout
    assert served.json("resume", LANE)["changed"] is True
    again = served.json("send", f"{LANE}@demo", '{"question": "who pays early?"}', "--wait", "10")
    assert again["status"] == "done"
    assert served.json("status", str(sent["id"]))["message"]["status"] == "done"
    kinds = [
        served.json("tail", "--no-follow", "--tenant", "*", "--kind", kind) for kind in ("paused", "resumed")
    ]
    assert [event["actor"].startswith("cli") for event in kinds] == [True, True]
    assert kinds[0]["detail"] == {"reason": "maintenance"}


def test_messages_of_one_key_wait_for_each_other(served: Binary):
    """Of two with one --ordering-key to a lane that nobody serves, the second is set aside."""
    sent = [served.json("send", "harbour/nobody@demo", "{}", "--ordering-key", "k")["id"] for _ in range(2)]
    waiting = [served.json("status", str(id))["message"]["retry_at"] for id in sent]
    assert waiting[0] is None
    assert waiting[1].startswith("9999-12-31")


def test_a_paused_tenant_is_named(served: Binary):
    served.json("pause", LANE, "--tenant", "demo")
    assert lane(served)["paused_tenants"] == ["demo"]
    other = served.json("send", f"{LANE}@other", '{"question": "who pays late?"}', "--wait", "10")
    assert other["status"] == "done"
    assert "gateway/chat@demo is running" in served.run("resume", LANE, "--tenant", "demo").stdout


def test_a_lane_that_nobody_knows(served: Binary):
    ran = served.run("pause", "gateway/chta")
    assert "error[invalid]" in ran.stderr
    assert "cogo lanes" in ran.stderr
    assert ran.returncode == 2


def test_dead_letters_are_grouped_and_redriven(served: Binary):
    """What failed is counted by code; --dry-run counts, redrive puts back, and it fails once more."""
    for _ in range(3):
        served.run("send", f"{LANE}@demo", BAD, "--wait", "10")
    (group,) = served.json("dead")["groups"]
    assert (group["code"], group["n"], group["tenants"]) == ("task_invalid", 3, 1)
    text = served.run("dead", LANE, "--tenant", "demo").stdout
    assert "task_invalid" in text
    assert "$.question" in text
    count = served.json("redrive", LANE, "--code", "task_invalid", "--dry-run")
    assert count == {"redriven": 3, "refused": 0, "dry_run": True}
    served.json("pause", LANE)
    assert (
        "2 messages are queued again" in served.run("redrive", LANE, "--limit", "2", "--reason", "x").stdout
    )
    assert lane(served)["waiting"] == 2
    assert served.json("dead", LANE)["groups"][0]["n"] == 1
    asked = served.run("redrive")
    assert "error[invalid]" in asked.stderr
    assert asked.returncode == 2
