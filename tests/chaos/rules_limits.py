"""Rules of limits: effects, attempts, tenants, budgets; and of the run as a whole: progress, memory, processes."""

from __future__ import annotations

from collections import Counter, defaultdict

from chaos.history import TERMINAL, History, Line
from chaos.verdict import Found, Violation

GROWTH_MIN_S = 60.0
GROWTH_KB_PER_S = 64.0
GROWTH_MIN_KB = 16_384


# -- 5, 6, 7, 8: effects and limits ------------------------------------------------------------


def effects_happen_once(history: History) -> Found:
    found: dict[int, list[Line]] = defaultdict(list)
    for effect in history.tables["effects"]:
        found[effect["message_id"]].append(effect)
    for id, effects in found.items():
        keys = Counter(effect["key"] for effect in effects)
        for key, count in keys.items():
            if count > 1:
                yield Violation(5, f"effect {key} happened {count} times", id)
        row = history.rows.get(id)
        if row is None or row["status"] != "done":
            yield Violation(5, f"it has an effect and is {row and row['status']}", id)
    effective = set(history.meta.get("effect_lanes", ()))
    for id, row in history.rows.items():
        if f"{row['service']}/{row['role']}" in effective and row["status"] == "done" and id not in found:
            yield Violation(5, "it is done without its effect", id)


def attempts_are_limited(history: History) -> Found:
    for id, row in history.rows.items():
        most = history.lane(row)["max_attempts"]
        tried = max((step.last.get("attempts") or 0 for step in history.steps.get(id, ())), default=0)
        if max(tried, row["attempts"]) > most:
            yield Violation(6, f"{max(tried, row['attempts'])} attempts, its lane allows {most}", id)


def tenants_are_apart(history: History) -> Found:
    for seen in history.by_type["seen"]:
        own = set(seen["tenants"])
        for id, tenant in seen["rows"]:
            if tenant not in own:
                yield Violation(7, f"{seen['table']} showed a row of {tenant} to {sorted(own)}", id)
        if seen.get("final") and seen["table"] == "agent_messages":
            shown = {id for id, _ in seen["rows"]}
            for id in {id for id, row in history.rows.items() if row["tenant"] in own} - shown:
                yield Violation(7, f"it was hidden from {sorted(own)}", id)
    for id, row in history.rows.items():
        parent = history.rows.get(row.get("reply_to") or row["payload"].get("parent") or 0)
        if parent is not None and parent["tenant"] != row["tenant"]:
            yield Violation(7, f"{row['tenant']}'s, but it comes from one of {parent['tenant']}", id)


def budgets_hold(history: History) -> Found:
    acknowledged: Counter[int] = Counter()
    for line in history.by_type["handler"]:
        if line["stage"] == "spent" and not history.requeues(line["root"]):
            acknowledged[line["root"]] += line["cost_usd"]
    for hold in history.tables["holds"]:
        spent, most, id = hold["spent_cost_usd"], hold["max_cost_usd"], hold["root_id"]
        if most is not None and spent > most + 1e-9:
            yield Violation(8, f"spent {spent:g} of {most:g} USD", id)
        if acknowledged[id] > spent + 1e-9:
            yield Violation(8, f"{acknowledged[id]:g} USD were granted, the ledger says {spent:g}", id)


# -- 17: what operators and lanes set --------------------------------------------------------------


def limits_hold(history: History) -> Found:
    """After each claim, what is claimed of its lane, and of it for its tenant."""
    running: dict[str, dict[int, str]] = defaultdict(dict)
    for change in sorted(history.by_type["change"], key=lambda change: change["n"]):
        row = history.rows.get(change["id"])
        if row is None:
            continue
        lane, most = running[f"{row['service']}/{row['role']}"], history.lane(row)
        if change["now"] != "claimed":
            lane.pop(change["id"], None)
        elif change["id"] not in lane:
            lane[change["id"]] = row["tenant"]
            own = sum(tenant == row["tenant"] for tenant in lane.values())
            for name, count in (("max_running", len(lane)), ("max_running_per_tenant", own)):
                if most.get(name) is not None and count > most[name]:
                    yield Violation(17, f"with it {count} run, {name} is {most[name]}", change["id"])


def pauses_hold(history: History) -> Found:
    for pause in history.by_type["pause"]:
        for id, row in history.rows.items():
            if f"{row['service']}/{row['role']}" != pause["lane"] or pause["tenant"] not in {
                None,
                row["tenant"],
            }:
                continue
            for step in history.steps.get(id, ()):
                mine = step.claims and step.application in history.holders
                if mine and pause["from"] < step.began and step.at < pause["to"]:
                    yield Violation(
                        17, f"claimed while {pause['lane']} was paused for {pause['tenant'] or 'all'}", id
                    )


# -- 9, 10, 15: the run as a whole -------------------------------------------------------------


def work_goes_on(history: History) -> Found:
    begin, heal, settled = (history.mark(name) for name in ("begin", "heal", "settled"))
    if begin is None or heal is None:
        yield Violation(9, "the run has no fault phase")
        return
    done = sum(begin["db"] <= step.at <= heal["db"] for step in history.ended("done"))
    if done < history.meta["done_min"]:
        yield Violation(9, f"{done} done under faults, at least {history.meta['done_min']} were to be")
    bound_s = history.meta["bound_s"]
    if settled is None or settled["t"] - heal["t"] > bound_s:
        open_ = [row for row in history.rows.values() if row["status"] not in TERMINAL]
        kinds = Counter(f"{row['service']}/{row['role']} {row['status']}" for row in open_)
        after_s = "never" if settled is None else f"after {settled['t'] - heal['t']:.1f} s"
        yield Violation(9, f"it settled {after_s}, at most {bound_s:g} s were allowed; open: {dict(kinds)}",
                        open_[0]["id"] if open_ else None)  # fmt: skip


def memory_is_bounded(history: History) -> Found:
    """A straight line through the later two thirds: what a process needs at first is no growth."""
    by_pid: dict[int, list[Line]] = defaultdict(list)
    for sample in history.by_type["rss"]:
        by_pid[sample["pid"]].append(sample)
    for pid, samples in by_pid.items():
        late = samples[len(samples) // 3 :]
        if len(late) < 10 or late[-1]["t"] - late[0]["t"] < GROWTH_MIN_S * 2 / 3:
            continue
        slope = _slope([s["t"] for s in late], [s["kb"] for s in late])
        grown = slope * (late[-1]["t"] - late[0]["t"])
        if slope > GROWTH_KB_PER_S and grown > GROWTH_MIN_KB:
            yield Violation(10, f"process {pid} grew by {slope:.0f} KB a second", history=samples)


def _slope(xs: list[float], ys: list[float]) -> float:
    """Least squares."""
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    under = sum((x - x_mean) ** 2 for x in xs)
    return over / under if under else 0.0


def processes_stay_up(history: History) -> Found:
    for line in history.by_type["process"]:
        if line["stage"] == "exited" and not line["expected"]:
            yield Violation(15, f"{line['holder']} ended with {line['code']}", history=[line])
