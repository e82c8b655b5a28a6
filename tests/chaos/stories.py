"""Histories written by hand, as the recorder would have written them; those in RIGHT break no rule."""

from __future__ import annotations

import json
from typing import Any

from chaos.checker import check
from chaos.history import History

LANES = {
    "chaos/noop": {"max_attempts": 3, "events": None},
    "chaos/evented": {"max_attempts": 3, "events": "evented"},
    "chaos/effect": {"max_attempts": 3, "events": None},
    "chaos/limited": {"max_attempts": 3, "events": None, "max_running": 3, "max_running_per_tenant": 2},
}
INSERTED = {"was": None, "fence_was": None, "by_was": None}


class Story:
    """Writes a history by hand: what each method tells is told as the recorder would."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.rows: dict[int, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []
        self.now = 1000.0
        self.fence = 0
        self.told_of_counts = True
        self.line(
            "meta", lanes=LANES, effect_lanes=["chaos/effect"], reclaim_after_s=4.0, done_min=0, bound_s=10.0
        )
        self.line("process", stage="ready", holder="p1.1", pid=1)
        self.line("process", stage="ready", holder="p2.1", pid=2)
        self.line("mark", name="begin", db=self.now)

    def line(self, type: str, **fields: Any) -> dict[str, Any]:
        self.lines.append({"type": type, "t": self.now, "w": self.now, "who": "story", **fields})
        return self.lines[-1]

    def passes(self, seconds: float) -> Story:
        self.now += seconds
        return self

    def change(self, id: int, application: str, door: str | None = None, **to: Any) -> dict[str, Any]:
        """One change of one message, in a transaction of its own unless `tx` is given."""
        self.now += 0.01
        row = self.rows[id]
        was = {"was": row["status"], "fence_was": row["fence"], "by_was": row["by"], "snippet_was": row["snippet"],
               "error_was": row["error"], "epoch_was": row["epoch"], "claimed_at_was": row["claimed_at"],
               "deadline_was": row["deadline"], "expires_at": row["expires_at"]}  # fmt: skip
        about = {name: to.pop(name) for name in ("tx",) if name in to}
        row |= to
        n = len(self.lines)
        return self.line("change", n=n, id=id, at=self.now, began=self.now, application=application, door=door,
                         **{"tx": n} | about, **was, now=row["status"], fence=row["fence"], by=row["by"],
                         snippet=row["snippet"], error=row["error"], attempts=row["attempts"],
                         awaits=row["awaits"], reply_to=row["reply_to"], epoch=row["epoch"])  # fmt: skip

    def insert(self, id: int, lane: str = "chaos/noop", by: str = "chaos:sql", **payload: Any) -> int:
        """A new row, without anybody having asked for it."""
        fields = {
            name: payload.pop(name)
            for name in ("tenant", "reply_to", "reply_fence", "ordering_key")
            if name in payload
        }
        service, role = lane.split("/")
        self.rows[id] = {"status": "queued", "fence": 0, "by": None, "snippet": None, "error": None, "attempts": 0,
                         "awaits": None, "reply_to": None, "reply_fence": None, "epoch": None, "claimed_at": None,
                         "deadline": None, "expires_at": None, "service": service, "role": role, "tenant": "acme",
                         "payload": payload} | fields  # fmt: skip
        self.change(id, by).update(INSERTED)
        return id

    def enqueue(
        self, id: int, lane: str = "chaos/noop", answer: str = "ok", key: str | None = None, **payload: Any
    ) -> int:
        """A producer's message, acknowledged or not; the row is there either way."""
        payload = {"uid": f"u{id}", **payload}
        self.ask(payload, lane, answer, key, id)
        return self.insert(id, lane, **payload)

    def ask(self, payload: dict[str, Any], lane: str, answer: str, key: str | None, id: int | None) -> None:
        op = {
            "f": "enqueue",
            "uid": payload["uid"],
            "lane": lane,
            "tenant": "acme",
            "payload": payload,
            "key": key,
        }
        self.line("op", stage="invoke", **op)
        self.line("op", stage=answer, **op, **({"id": id} if answer == "ok" else {}))

    def claim(self, id: int, by: str = "p1.1", **more: Any) -> int:
        self.fence += 1
        attempts = self.rows[id]["attempts"] + 1
        self.change(id, by, "claim", status="claimed", fence=self.fence, by=by, epoch=int(by[1]),
                    claimed_at=self.now, deadline=self.now + 100, attempts=attempts, **more)  # fmt: skip
        self.line("handler", stage="start", id=id, fence=self.fence)
        return self.fence

    def finish(self, id: int, by: str = "p1.1", fence: int | None = None, **more: Any) -> None:
        """Done, with a result that names the fence it was made under."""
        snippet = json.dumps({"fence": fence or self.rows[id]["fence"]})
        self.change(id, by, "finish", **{"status": "done", "fence": 0, "snippet": snippet} | more)
        self.tell(id)

    def tell(self, id: int) -> None:
        """The bus event of an end."""
        row = self.rows[id]
        prefix = LANES[f"{row['service']}/{row['role']}"]["events"]
        if row["status"] == "failed" or (row["status"] == "done" and prefix):
            kind = f"{prefix or row['service']}_{row['status']}"
            self.others.append({"table": "events", "message_id": id, "kind": kind})

    def retry(self, id: int, by: str = "p1.1", why: str = "retry: fence={}", **more: Any) -> None:
        error = why.format(self.rows[id]["fence"])
        self.change(id, by, "finish", **{"status": "queued", "fence": 0, "by": None, "error": error} | more)

    def lease(self, epoch: int, seconds: float) -> Story:
        """A beat: the lease of this holder ends so many seconds from now."""
        self.line("lease", epoch=epoch, at=self.now, lease_until=self.now + seconds)
        return self

    def reclaim(self, id: int, by: str = "p2.1") -> None:
        self.change(id, by, "reclaim", status="queued", fence=0, by=None, error="claim_lost: gone")

    def handled(self, id: int, by: str = "p1.1") -> int:
        self.claim(id, by)
        self.finish(id, by)
        return id

    def effect(self, id: int, key: str = "effect") -> None:
        self.others.append({"table": "effects", "message_id": id, "key": key, "fence": self.fence})

    def judged(self) -> set[int]:
        """The rules that this story breaks."""
        if not any(line["type"] == "mark" and line["name"] == "heal" for line in self.lines):
            self.passes(1).line("mark", name="heal", db=self.now)
            self.passes(1).line("mark", name="settled", db=self.now)
        return {violation.rule for violation in check(self.history())}

    def history(self) -> History:
        tables = [
            {"table": "messages", "id": id, **row, "result_snippet": row["snippet"]}
            for id, row in self.rows.items()
        ]
        ends = [
            row["status"] for row in self.rows.values() if row["status"] in {"done", "failed", "cancelled"}
        ]
        counts = [{"table": "counts", "status": status, "n": ends.count(status)} for status in set(ends)]
        return History(self.lines, tables + self.others + (counts if self.told_of_counts else []))


# -- what is right --------------------------------------------------------------------------------


def plain(story: Story) -> None:
    """Enqueued, claimed, done; and one whose answer was lost, which is there."""
    story.handled(story.enqueue(1))
    story.handled(story.enqueue(2, answer="info"))


def lost_answer_without_a_row(story: Story) -> None:
    """Nobody knows what became of it, and nothing did."""
    story.ask({"uid": "u9"}, "chaos/noop", "info", None, None)


def asked_again_with_its_key(story: Story) -> None:
    story.ask({"uid": "u1"}, "chaos/noop", "info", "k", None)
    story.handled(story.enqueue(1, key="k"))


def retried(story: Story) -> None:
    story.enqueue(1)
    for _ in range(2):
        story.claim(1)
        story.retry(1)
    story.handled(1)


def reclaimed_from_the_dead(story: Story) -> None:
    """The lease had ended; what the zombie wrote left no trace."""
    story.enqueue(1)
    story.claim(1, "p1.1")
    story.lease(1, 2.5).passes(5).reclaim(1)
    story.handled(1, "p2.1")


def reclaimed_after_its_run_time(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.rows[1]["deadline"] = story.now + 2
    story.passes(4).lease(1, 2.5).passes(1).reclaim(1)
    story.handled(1, "p2.1")


def beat_came_while_it_was_reclaimed(story: Story) -> None:
    """Its lease was renewed in the same moment: the reclaimer could not see that."""
    story.enqueue(1)
    story.claim(1)
    story.lease(1, 2.5).passes(5).lease(1, 2.5).reclaim(1)
    story.handled(1, "p2.1")


def outsider_works(story: Story) -> None:
    """Its UPDATE, and what the trigger adds to it in the same transaction."""
    story.enqueue(1)
    story.change(1, "chaos:outsider", status="claimed", by="outsider:1", tx=77)
    story.change(1, "chaos:outsider", fence=50, claimed_at=story.now, attempts=1, tx=77)
    story.change(1, "chaos:outsider", status="done", snippet='{"fence": 50}', tx=78)
    story.change(1, "chaos:outsider", fence=0, tx=78)


def outsider_forgets(story: Story) -> None:
    story.enqueue(1)
    story.change(1, "chaos:outsider", status="claimed", by="outsider:1", fence=50, claimed_at=story.now)
    story.passes(4.5).reclaim(1)
    story.fence = 50
    story.handled(1)


def answer_was_given_back(story: Story) -> None:
    """The answer of a claim was lost: no handler saw it."""
    story.enqueue(1)
    story.change(1, "p1.1", "claim", status="claimed", fence=60, by="p1.1", epoch=1, attempts=1)
    story.change(1, "p1.1", "give_back", status="queued", fence=0, by=None, attempts=0)
    story.fence = 60
    story.handled(1)


def requeued_by_the_operator(story: Story) -> None:
    story.enqueue(1)
    story.claim(1)
    story.retry(1, status="failed", error="rejected: fence=1")
    story.tell(1)
    story.change(1, "chaos:operator", "requeue", status="queued", attempts=0, error=None, by=None)
    story.handled(1)


def expired(story: Story) -> None:
    story.enqueue(1)
    story.rows[1]["expires_at"] = story.now + 1
    story.claim(1, "p2.1")
    story.passes(2).change(1, "p1.1", "expire", status="failed", fence=0, error="ttl_expired: x")
    story.tell(1)


def effective(story: Story) -> None:
    story.handled(story.enqueue(1, "chaos/effect"))
    story.effect(1)
    story.enqueue(2, "chaos/effect")
    story.change(2, "chaos:operator", "cancel", status="cancelled")


def evented(story: Story) -> None:
    story.handled(story.enqueue(1, "chaos/evented"))


def followed(story: Story) -> None:
    """Two follow-ups of the accepted finish, none of the attempt before."""
    story.enqueue(1, follow=2)
    story.claim(1)
    story.retry(1)
    fence = story.claim(1)
    story.finish(1)
    for number in range(2):
        story.handled(story.insert(10 + number, by="p1.1", parent=1, left_under=fence, i=number))


def delegated(story: Story) -> None:
    waits_for_a_child(story)
    story.claim(2)
    story.finish(2, tx=90)
    story.change(1, "p1.1", "finish", status="done", snippet=story.rows[2]["snippet"], awaits=None, tx=90)


def cancelled_from_the_top(story: Story) -> None:
    """The parent by the operator, its child, claimed by another process, by the cascade."""
    waits_for_a_child(story)
    story.claim(2, "p2.1")
    story.change(1, "chaos:operator", "cancel", status="cancelled", awaits=None)
    story.change(2, "p1.1", "cascade_cancels", status="cancelled", fence=0)


def waits_for_a_child(story: Story) -> None:
    """Message 1 waits for message 2; neither has ended."""
    story.enqueue(1)
    fence = story.claim(1)
    story.change(1, "p1.1", "finish", status="waiting", fence=0, awaits=fence)
    story.insert(2, by="p1.1", reply_to=1, reply_fence=fence, parent=1, left_under=fence, i=0)


def seen_by_its_tenant(story: Story) -> None:
    story.handled(story.enqueue(1))
    story.line("seen", tenants=["acme"], table="agent_messages", rows=[[1, "acme"]], final=True)
    story.line("seen", tenants=[], table="agent_messages", rows=[], final=True)


def within_budget(story: Story) -> None:
    story.handled(story.enqueue(1))
    for _ in range(2):
        story.line("handler", stage="spent", id=1, fence=1, root=1, cost_usd=0.25)
    story.others.append({"table": "holds", "root_id": 1, "max_cost_usd": 0.5, "spent_cost_usd": 0.5})


def memory_is_steady(story: Story) -> None:
    for second in range(120):
        story.passes(1).line("rss", pid=1, holder="p1.1", kb=50_000 + (second % 7) * 100)


def killed_on_purpose(story: Story) -> None:
    story.line("process", stage="exited", holder="p1.1", pid=1, code=-9, expected=True)


def in_order(story: Story) -> None:
    """Two of one key, one of another, which need not wait."""
    story.insert(1, ordering_key="a")
    story.insert(2, ordering_key="a")
    story.insert(3, ordering_key="b")
    story.claim(1)
    story.handled(3)
    story.retry(1)
    story.handled(1)
    story.handled(2)


def put_back_while_the_next_was_claimed(story: Story) -> None:
    """The claim had begun before the requeue could be seen."""
    story.insert(1, ordering_key="a")
    story.insert(2, ordering_key="a")
    story.change(1, "chaos:operator", "cancel", status="cancelled")
    story.passes(1).change(1, "chaos:operator", "requeue", status="queued")
    story.handled(2)
    story.handled(1)


def limited(story: Story) -> None:
    """Two of one tenant and one of another at a time; the next when one of them has ended."""
    for id in (1, 2, 4):
        story.insert(id, "chaos/limited")
    story.insert(3, "chaos/limited", tenant="beta")
    for id in (1, 2, 3):
        story.claim(id)
    story.finish(1)
    story.claim(4)
    for id in (2, 3, 4):
        story.finish(id)


def paused(story: Story) -> None:
    """One tenant is paused: another's message is claimed meanwhile, its own afterwards."""
    story.enqueue(1)
    story.insert(2, tenant="beta")
    since = story.now
    story.handled(2)
    story.line("pause", lane="chaos/noop", tenant="acme", **{"from": since, "to": story.now})
    story.handled(1)


RIGHT = [
    plain, lost_answer_without_a_row, asked_again_with_its_key, retried, reclaimed_from_the_dead,
    reclaimed_after_its_run_time, beat_came_while_it_was_reclaimed, outsider_works, outsider_forgets,
    answer_was_given_back, requeued_by_the_operator, expired, effective, evented, followed, delegated,
    cancelled_from_the_top, seen_by_its_tenant, within_budget, memory_is_steady, killed_on_purpose,
    in_order, put_back_while_the_next_was_claimed, limited, paused,
]  # fmt: skip
