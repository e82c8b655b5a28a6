"""Proves that the bus can be worked by hand: send, status, cancel, requeue, tail, smoke, doctor, token."""

from __future__ import annotations

import msgspec
from binary import Binary

from cogo.commands.local import call

LANE = "gateway/chat"
# It is put on the lane directly, so that no index is needed: nothing is indexed, so nothing is found.
QUESTION = '{"question": "who pays late?"}'


def test_a_message_is_sent_waited_for_and_shown(served: Binary):
    """`send --wait` prints the result; `status ID` shows who did it; the same key gives the same id."""
    sent = served.json("send", f"{LANE}@demo", QUESTION, "--key", "once", "--wait", "10")
    assert sent["status"] == "done"
    assert sent["result"]["found"] is False
    again = served.json("send", f"{LANE}@demo", QUESTION, "--key", "once")
    assert again["id"] == sent["id"]
    found = served.json("status", str(sent["id"]))
    assert found["message"]["claimed_by"] == "harbour-1"
    assert [event["kind"] for event in found["events"]] == ["gateway_done"]
    text = served.run("status", str(sent["id"])).stdout
    assert "gateway/chat/0@demo" in text
    assert "gateway_done" in text


def test_the_same_key_with_another_payload_is_refused(served: Binary):
    """An idempotency key belongs to its first payload."""
    served.json("send", f"{LANE}@demo", QUESTION, "--key", "once")
    ran = served.run("send", f"{LANE}@demo", '{"question": "another?"}', "--key", "once")
    assert "error[idempotency_conflict]" in ran.stderr
    assert ran.returncode == 1


def test_a_payload_that_does_not_fit_ends_with_exit_code_1(served: Binary):
    """The handler's refusal names the JSON path; --wait turns it into exit code 1."""
    ran = served.run("send", f"{LANE}@demo", '{"question": 5}', "--wait", "10", "--json")
    assert "task_invalid" in ran.stdout
    assert "$.question" in ran.stdout
    assert ran.returncode == 1


def test_cancel_and_requeue_are_audited_with_the_reason(served: Binary):
    """A message of a lane that nobody serves waits; it is cancelled, requeued, and both are on record."""
    id = str(served.json("send", "harbour/nobody@demo", "{}")["id"])
    assert served.json("cancel", id, "--reason", "asked twice")["status"] == "cancelled"
    assert served.json("requeue", id, "--reason", "it was not")["status"] == "queued"
    lines = served.run("tail", "--no-follow", "--json", "--tenant", "demo").stdout.splitlines()
    events = [msgspec.json.decode(line) for line in lines]
    found = {event["kind"]: event for event in events if event["message_id"] == int(id)}
    assert found["cancelled"]["detail"]["reason"] == "asked twice"
    assert found["requeued"]["detail"]["reason"] == "it was not"
    assert found["requeued"]["actor"].startswith("cli")
    refused = served.run("requeue", id)
    assert "error[message_state]" in refused.stderr
    lanes = served.json("status")["lanes"]
    assert [(lane["lane"], lane["queued"]) for lane in lanes] == [("harbour/nobody/0", 1)]


def test_an_unknown_id_is_an_error_with_its_code(served: Binary):
    """Status, cancel and requeue of an id that does not exist all say message_unknown."""
    for verb in ("status", "cancel", "requeue"):
        ran = served.run(verb, "999999")
        assert "error[message_unknown]" in ran.stderr
        assert ran.returncode == 1


def test_doctor_names_a_lane_that_nobody_serves(served: Binary):
    """All is well until a message waits for a role that no process runs."""
    well = served.run("doctor")
    assert well.returncode == 0, well.stdout
    served.json("send", "harbour/nobody@demo", "{}")
    ran = served.run("doctor", "--json")
    wrong = [check for check in msgspec.json.decode(ran.stdout)["checks"] if check["state"] == "wrong"]
    assert [check["name"] for check in wrong] == ["lanes"]
    assert "harbour/nobody/0" in wrong[0]["detail"]
    assert ran.returncode == 1


def test_smoke_sees_that_wakeups_bring_messages(served: Binary):
    """Ten messages to a sleeping consumer: a wakeup brings each, long before the poll would."""
    found = served.json("smoke", "bus:notify")
    assert found["ok"] is True
    assert found["listener"] == "notify"
    assert found["messages"] == 10


def test_the_login_address_opens_the_dashboard(served: Binary):
    """`token --login` gives an address that sets a cookie, with which the dashboard answers."""
    url = served.run("token", "--tenant", "demo", "--login").stdout.strip()
    base, path = url.split("/dashboard/", 1)
    login = call(base, "GET", f"/dashboard/{path}")
    assert login.status == 303
    cookie = login.headers["set-cookie"].split(";")[0]
    assert call(base, "GET", login.headers["location"]).status == 401
    page = call(base, "GET", login.headers["location"], headers={"Cookie": cookie, "Accept": "text/html"})
    assert page.status == 200
    assert b"<html" in page.content


def test_the_schema_is_up_to_date_on_an_embedded_database(served: Binary):
    """`cogo migrate` finds nothing to do where `cogo serve` has migrated."""
    assert served.json("migrate") == {"applied": []}


def test_a_decision_is_explained_by_its_number(binary: Binary):
    """`explain ID` shows candidates, terms and what came of it; `eval replay` makes the decision again."""
    binary.serve("--roles", "orchestrator,executor,gateway", holder="harbour-1")
    asked = '{"intent": "chat", "payload": {"question": "who pays late?"}}'
    assert binary.json("send", "orchestrator/decide@demo", asked, "--wait", "10")["status"] == "done"
    found = binary.json("explain", "1")
    assert (found["intent"], found["lane"], found["propensity"]) == ("chat", "gateway/chat/0", 1.0)
    (candidate,) = found["candidates"]
    assert abs(sum(candidate["terms"].values()) - candidate["utility"]) < 1e-9
    assert [outcome["ok"] for outcome in found["outcomes"]] == [True]
    text = binary.run("explain", "1").stdout
    assert "the only candidate" in text
    assert "-> " in text
    assert "came of it: done after" in text
    unknown = binary.run("explain", "999")
    assert "error[not_found]" in unknown.stderr
    assert unknown.returncode == 1
    assert binary.json("eval", "replay", "--tenant", "demo") == {"decisions": 1, "equal": 1, "different": []}
