"""Histories written by hand with one thing wrong each: WRONG has them with the rule that they break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chaos.stories import Story, evented, followed, waits_for_a_child, within_budget

WRONG: list[tuple[int, str, Callable[[Story], Any]]] = []


def breaks(rule: int) -> Callable[[Callable[[Story], Any]], Callable[[Story], Any]]:
    def add(tell: Callable[[Story], Any]) -> Callable[[Story], Any]:
        WRONG.append((rule, tell.__name__, tell))
        return tell

    return add


@breaks(0)
def the_record_has_a_gap(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.lines = [line for line in story.lines if line.get("door") != "claim"]


@breaks(0)
def the_table_says_something_else(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.rows[1]["status"] = "failed"


@breaks(0)
def a_row_came_from_nowhere(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.lines = [line for line in story.lines if line["type"] != "change"]


@breaks(1)
def an_acknowledged_message_is_gone(story: Story) -> None:
    story.ask({"uid": "u1"}, "chaos/noop", "ok", None, 1)


@breaks(1)
def an_acknowledged_message_is_still_queued(story: Story) -> None:
    story.enqueue(1)


@breaks(1)
def a_message_was_deleted(story: Story) -> None:
    story.handled(story.enqueue(1, answer="info"))
    story.change(1, "p1.1", status=None)
    del story.rows[1]


@breaks(1)
def one_message_was_acknowledged_twice(story: Story) -> None:
    story.handled(story.enqueue(1, key="k"))
    story.ask({"uid": "u1"}, "chaos/noop", "ok", "k", 2)


@breaks(2)
def an_end_was_overwritten(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.change(1, "p1.1", "finish", status="failed", error="late")


@breaks(2)
def something_ended_was_reclaimed(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.change(1, "p2.1", "reclaim", status="queued")
    story.handled(1)


@breaks(2)
def a_result_changed_after_the_end(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.change(1, "p1.1", "finish", snippet='{"fence": 1, "again": true}')


@breaks(2)
def a_client_was_told_otherwise(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.line("op", f="result", stage="ok", id=1, status="cancelled")


@breaks(3)
def a_zombie_wrote_done(story: Story) -> None:
    story.enqueue(1)
    first = story.claim(1, "p1.1")
    story.lease(1, 2.5).passes(5).reclaim(1)
    story.claim(1, "p2.1")
    story.finish(1, "p1.1", fence=first)


@breaks(3)
def a_zombie_of_the_same_process_wrote_done(story: Story) -> None:
    story.enqueue(1)
    first = story.claim(1)
    story.retry(1, why="claim_lost: no fence is told")
    story.claim(1)
    story.finish(1, fence=first)


@breaks(3)
def a_zombie_wrote_a_retry(story: Story) -> None:
    story.enqueue(1)
    story.claim(1, "p1.1")
    story.lease(1, 2.5).passes(5).reclaim(1)
    story.claim(1, "p2.1")
    story.retry(1, "p2.1", why="retry: fence=1")
    story.handled(1)


@breaks(3)
def a_fence_stands_while_queued(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.retry(1, fence=story.fence)
    story.handled(1)


@breaks(3)
def done_without_a_claim(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.retry(1)
    story.finish(1, fence=1)


@breaks(3)
def a_fence_was_issued_twice(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.retry(1)
    story.fence = 0
    story.handled(1)


@breaks(3)
def an_outsider_ended_anothers_claim(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.change(1, "chaos:outsider", status="done", fence=0)


@breaks(3)
def a_fence_came_again_after_a_crash(story: Story) -> None:
    """The first claim was lost with Postgres, so nothing but its handler knows of it."""
    story.enqueue(1)
    story.line("handler", stage="start", id=1, fence=1)
    story.handled(1)


@breaks(3)
def a_fence_was_issued_for_two_messages(story: Story) -> None:
    story.enqueue(1)
    story.line("handler", stage="start", id=1, fence=2)
    story.handled(1)
    story.handled(story.enqueue(2))


@breaks(4)
def claims_overlap(story: Story) -> None:
    story.enqueue(1)
    story.claim(1, "p1.1")
    story.claim(1, "p2.1")
    story.finish(1, "p2.1")


@breaks(4)
def something_waiting_was_claimed(story: Story) -> None:
    waits_for_a_child(story)
    story.claim(1)
    story.finish(1)
    story.handled(2)


@breaks(4)
def taken_from_the_living(story: Story) -> None:
    story.enqueue(1)
    story.claim(1, "p1.1")
    story.lease(1, 2.5).passes(1).reclaim(1)
    story.handled(1, "p2.1")


@breaks(4)
def taken_from_itself_while_it_lives(story: Story) -> None:
    story.enqueue(1)
    story.claim(1, "p1.1")
    story.lease(1, 2.5).passes(1).reclaim(1, "p1.1")
    story.handled(1, "p2.1")


@breaks(4)
def an_outsiders_claim_was_taken_too_soon(story: Story) -> None:
    story.enqueue(1)
    story.change(1, "chaos:outsider", status="claimed", by="outsider:1", fence=50, claimed_at=story.now)
    story.passes(1).reclaim(1)
    story.fence = 50
    story.handled(1)


@breaks(4)
def a_running_handler_was_given_back(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.passes(1).change(1, "p1.1", "give_back", status="queued", fence=0, by=None)
    story.handled(1)


@breaks(4)
def a_claim_was_cancelled_by_nobody(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.change(1, "p2.1", status="cancelled", fence=0)


@breaks(5)
def an_effect_happened_twice(story: Story) -> None:
    story.handled(story.enqueue(1, "chaos/effect"))
    story.effect(1)
    story.effect(1)


@breaks(5)
def an_effect_without_an_end(story: Story) -> None:
    story.enqueue(1, "chaos/effect")
    story.effect(1)
    story.change(1, "chaos:operator", "cancel", status="cancelled")


@breaks(5)
def an_end_without_its_effect(story: Story) -> None:
    story.handled(story.enqueue(1, "chaos/effect"))


@breaks(6)
def too_many_attempts(story: Story) -> None:
    story.enqueue(1)
    for _ in range(3):
        story.claim(1)
        story.retry(1)
    story.handled(1)


@breaks(7)
def a_tenant_sees_anothers_row(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.line("seen", tenants=["beta"], table="bus_events", rows=[[1, "acme"]], final=False)


@breaks(7)
def a_tenant_does_not_see_its_own_row(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.line("seen", tenants=["acme"], table="agent_messages", rows=[], final=True)


@breaks(7)
def a_follow_up_went_to_another_tenant(story: Story) -> None:
    followed(story)
    story.rows[10]["tenant"] = "beta"


@breaks(8)
def a_budget_was_overspent(story: Story) -> None:
    within_budget(story)
    story.others[-1]["spent_cost_usd"] = 0.75


@breaks(8)
def a_draw_was_not_written_down(story: Story) -> None:
    within_budget(story)
    story.others[-1]["spent_cost_usd"] = 0.25


@breaks(9)
def nothing_was_done(story: Story) -> None:
    story.lines[0]["done_min"] = 1


@breaks(9)
def it_never_settled(story: Story) -> None:
    story.line("mark", name="heal", db=story.now)


@breaks(9)
def it_settled_late(story: Story) -> None:
    story.line("mark", name="heal", db=story.now)
    story.passes(11).line("mark", name="settled", db=story.now)


@breaks(10)
def memory_grows(story: Story) -> None:
    for second in range(120):
        story.passes(1).line("rss", pid=1, holder="p1.1", kb=50_000 + second * 1_000)


@breaks(11)
def a_payload_changed(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.rows[1]["payload"] = {"uid": "u1", "other": 1}


@breaks(11)
def a_tenant_changed(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.rows[1]["tenant"] = "beta"


@breaks(11)
def what_was_rolled_back_is_there(story: Story) -> None:
    story.handled(story.enqueue(1, answer="fail"))


@breaks(11)
def one_key_made_two_rows(story: Story) -> None:
    story.ask({"uid": "u1"}, "chaos/noop", "info", "k", None)
    story.handled(story.enqueue(1, key="k"))
    story.handled(story.insert(2, uid="u1"))


@breaks(12)
def a_refused_finish_left_a_follow_up(story: Story) -> None:
    story.enqueue(1, follow=1)
    first = story.claim(1)
    story.retry(1)
    fence = story.claim(1)
    story.finish(1)
    for left_under in (first, fence):
        story.handled(story.insert(10 + left_under, by="p1.1", parent=1, left_under=left_under, i=0))


@breaks(12)
def a_follow_up_is_missing(story: Story) -> None:
    story.handled(story.enqueue(1, follow=1))


@breaks(12)
def a_follow_up_is_there_twice(story: Story) -> None:
    followed(story)
    story.handled(story.insert(12, by="p1.1", **story.rows[10]["payload"]))


@breaks(12)
def a_parent_waits_for_no_child(story: Story) -> None:
    story.enqueue(1)
    fence = story.claim(1)
    story.change(1, "p1.1", "finish", status="waiting", fence=0, awaits=fence)
    story.change(1, "chaos:operator", "cancel", status="cancelled", awaits=None)


@breaks(13)
def an_end_was_not_told(story: Story) -> None:
    evented(story)
    story.others.clear()


@breaks(13)
def an_end_was_told_twice(story: Story) -> None:
    evented(story)
    story.others *= 2


@breaks(13)
def the_counters_are_wrong(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.told_of_counts = False
    story.others.append({"table": "counts", "status": "done", "n": 2})


@breaks(14)
def a_parent_waits_for_an_ended_child(story: Story) -> None:
    waits_for_a_child(story)
    story.handled(2)


@breaks(14)
def a_parent_ended_before_its_child(story: Story) -> None:
    waits_for_a_child(story)
    story.change(1, "p1.1", "finish", status="done", awaits=None)
    story.handled(2)


@breaks(14)
def a_parent_ended_with_another_result(story: Story) -> None:
    waits_for_a_child(story)
    story.claim(2)
    story.finish(2, tx=90)
    story.change(1, "p1.1", "finish", status="done", snippet='{"fence": 99}', awaits=None, tx=90)


@breaks(15)
def a_process_ended_by_itself(story: Story) -> None:
    story.line("process", stage="exited", holder="p1.1", pid=1, code=1, expected=False)


@breaks(16)
def claimed_before_its_turn(story: Story) -> None:
    story.insert(1, ordering_key="a")
    story.handled(story.insert(2, ordering_key="a"))
    story.handled(1)


@breaks(16)
def claimed_while_the_first_is_to_be_tried_again(story: Story) -> None:
    for id in (1, 2):
        story.insert(id, ordering_key="a")
    story.claim(1)
    story.retry(1)
    story.handled(2)
    story.handled(1)


@breaks(16)
def put_back_beside_one_at_work(story: Story) -> None:
    for id in (1, 2):
        story.insert(id, ordering_key="a")
    story.change(1, "chaos:operator", "cancel", status="cancelled")
    story.claim(2)
    story.change(1, "chaos:operator", "requeue", status="queued")
    story.passes(1).handled(1)
    story.finish(2)


@breaks(17)
def too_many_run_for_one_tenant(story: Story) -> None:
    for id in (1, 2, 3):
        story.insert(id, "chaos/limited")
        story.claim(id)
    for id in (1, 2, 3):
        story.finish(id)


@breaks(17)
def too_many_run(story: Story) -> None:
    for id in (1, 2, 3, 4):
        story.insert(id, "chaos/limited", tenant=f"tenant{id}")
        story.claim(id)
    for id in (1, 2, 3, 4):
        story.finish(id)


@breaks(17)
def claimed_while_paused(story: Story) -> None:
    story.enqueue(1)
    since = story.now
    story.handled(1)
    story.line("pause", lane="chaos/noop", tenant=None, **{"from": since, "to": story.now})
