"""Whether the dashboard and the rules tell the same of two replicas as of one.

    replicas.py data                  the series of both worlds, for promtool tsdb create-blocks-from
    replicas.py compare PROMETHEUS    every query, asked of a Prometheus that has them, and totals

The job "one" is a single exporter, the job "many" the same work done by two: each holds some of the
searches, and one search is just moving. Every metric of docs/metrics.md is there. What comes from a query
must be equal, but for what is told of each instance.

The jobs of BURSTS are exporters of which each counter grows once, by ten, all at once: legends that tell a
total must tell that, whatever the time between two scrapes is.

Needs Python 3.9 and PyYAML. Exits with 1 and a line for every fault.
"""

import hashlib
import itertools
import math
import re
import sys

import check

END = 1_760_000_000
STEP = 15
SCRAPES = 120
# One search moves right before the last scrape: then both replicas seem to have its gauges.
MOVED = SCRAPES - 1

LABELS = {
    "account": ["acme"],
    "tenant": ["bank", "retail"],
    "search": ["critical", "open"],
    "state": ["Critical", "Warning"],
    "event": ["left", "opened"],
    "reason": ["timeout"],
    "endpoint": ["search"],
    "code": ["200"],
    "sink": ["file"],
    "level": ["error", "info"],
}
BUCKETS = {"0.1": 0.25, "1": 0.5, "+Inf": 1.0}
MOVING = ("bank", "open")
# Gauges of what a replica itself delivers, not of a search. Over the replicas, these add up.
SUMMED = {"opsramp_sink_backlog_events"}
# Of these, the earliest counts.
EARLIEST = {"opsramp_sink_oldest_pending_timestamp_seconds"}
# The replica that no longer polls a tenant still shows its last headers: nothing left, and a renewal that
# is long past.
ALLOWANCE = "opsramp_api_rate_limit_limit"
ALLOWANCE_LEFT = "opsramp_api_rate_limit_remaining"
ALLOWANCE_RENEWED = "opsramp_api_rate_limit_reset_timestamp_seconds"
# When the counters of these jobs grow, and by how much; by job: the seconds between two scrapes, and what the
# counters said before. One is started again, and counts from 0.
BURST_AT = END - SCRAPES // 2 * STEP
BURST = 10
RESTARTED = "restarted"
BURSTS = {
    "burst-15": (15, 1000),
    "burst-30": (30, 1000),
    "burst-60": (60, 1000),
    "first": (60, 0),
    RESTARTED: (60, 1000),
}
# What brings nothing here: these ask for what was recorded, for a failure, and for the target itself.
EMPTY = {
    "rule job_instance_account_tenant_search:opsramp_up:timestamp_max6h",
    "rule job_instance_account:opsramp_discovery_known:zero_timestamp",
    "rule job_instance:up:timestamp",
}


def metrics():
    """Every metric, its kind and its labels, as docs/metrics.md has them."""
    table = (check.ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", table, re.M):
        labels = re.findall(r"\w+", labels.replace("and those of `group_by`", "state"))
        yield name, kind, labels


def number(*words):
    """Some number that is the same each time, from 1 to 100."""
    return 1 + int(hashlib.sha256("/".join(words).encode()).hexdigest(), 16) % 100


def holder(labels, scrape):
    search = labels["tenant"], labels.get("search")
    if search == MOVING:
        return "b" if scrape >= MOVED else "a"
    return "a" if labels["tenant"] == "retail" else "b"


def values(name, kind, labels, scrape):
    """What the instances say: of one exporter, then of each of two replicas; None where nothing."""
    own = number(name, *labels.values())
    if kind != "gauge":
        grown = own * scrape
        if "search" not in labels:
            return grown, grown // 3, grown - grown // 3
        of_a = sum(holder(labels, it) == "a" for it in range(scrape)) * own
        return grown, of_a, grown - of_a
    if name == ALLOWANCE:
        own = 100
    if name == ALLOWANCE_LEFT:
        return own, *(own if holder(labels, scrape) == it else 0 for it in "ab")
    if name == ALLOWANCE_RENEWED:
        return END + own, *(END + own if holder(labels, scrape) == it else END - own for it in "ab")
    if name.endswith("_timestamp_seconds"):
        own = END - own
    if name in ("opsramp_up", "opsramp_search_complete", "opsramp_discovery_up", "opsramp_discovery_known"):
        own = 1
    if name == "opsramp_lease_held":
        return 1, float(holder(labels, scrape) == "a"), float(holder(labels, scrape) == "b")
    if "search" in labels:
        return own, *(own if holder(labels, scrape) == it else None for it in "ab")
    if name in SUMMED:
        return own, own // 3, own - own // 3
    if name in EARLIEST:
        return own, own + 5, own
    return own, own, own


def samples(name, kind, labels):
    """The series of a metric by suffix and further labels, each with its part of the value."""
    if kind == "histogram":
        for bound, part in BUCKETS.items():
            yield f"{name}_bucket", {**labels, "le": bound}, part
        yield f"{name}_count", labels, 1.0
        yield f"{name}_sum", labels, 0.3
    else:
        yield name, labels, 1.0


def write_data():
    for name, kind, names in metrics():
        print(f"# TYPE {name.removesuffix('_total')} {kind}")
        for chosen in itertools.product(*(LABELS.get(it, ["x"]) for it in names)):
            labels = dict(zip(names, chosen))
            for series, more, part in samples(name, kind, labels):
                for index, (job, instance) in enumerate([("one", "x"), ("many", "a"), ("many", "b")]):
                    told = ",".join(
                        f'{key}="{value}"'
                        for key, value in {**more, "job": job, "instance": instance}.items()
                    )
                    for scrape in range(SCRAPES):
                        value = values(name, kind, labels, scrape)[index]
                        if value is not None:
                            at = END - (SCRAPES - 1 - scrape) * STEP
                            print(f"{series}{{{told}}} {value * part} {at}")
        if kind == "counter":
            labels = {it: LABELS.get(it, ["x"])[0] for it in names}
            for job, (every, before) in BURSTS.items():
                told = ",".join(
                    f'{key}="{value}"' for key, value in {**labels, "job": job, "instance": "x"}.items()
                )
                for at in range(END - SCRAPES * STEP, END + 1, every):
                    if at < BURST_AT:
                        value = before
                    else:
                        value = BURST if job == RESTARTED else before + BURST
                    print(f"{name}{{{told}}} {value} {at}")
    print("# EOF")


def found(base, expr):
    """What a query brings, by labels without those of the target; and from which instances."""
    answer = check.ask(base, "/api/v1/query", query=expr, time=END)
    if answer["status"] != "success":
        return None, answer["error"]
    series, instances = {}, set()
    for result in answer["data"]["result"]:
        labels = dict(result["metric"])
        labels.pop("job", None)
        instances.add(labels.pop("instance", None))
        series.setdefault(tuple(sorted(labels.items())), []).append(float(result["value"][1]))
    return series, instances


def equal(one, many):
    return one.keys() == many.keys() and all(
        len(one[key]) == len(many[key]) == 1 and math.isclose(one[key][0], many[key][0], rel_tol=1e-9)
        for key in one
    )


def of_job(expr):
    """A rule's expression, of one job alone; what it takes from a rule before it is worked out."""
    for name, recorded, rule in check.rules():
        if "record" in rule:
            expr = re.sub(rf"(?<![\w:]){name}(?![\w:[])", lambda _: f"({recorded})", expr)
    expr = re.sub(r"\b(opsramp_\w+)\{", r'\1{job=~"$job", ', expr)
    return re.sub(r"\b(opsramp_\w+)(?![\w{:])", r'\1{job=~"$job"}', expr)


def compare(base):
    compared = of_instances = 0
    everything = [
        (f"{name}: {what} {ref}".rstrip(), expr)
        for name, what, ref, expr, _ in check.queries("prometheus")
        if not what.startswith(("variable", "annotation"))
    ]
    everything += [(f"rule {name}", of_job(expr)) for name, expr, rule in check.rules() if "record" in rule]
    everything += [(f"Grafana's rule {name}", of_job(expr)) for name, expr in check.grafana_rules()]
    for where, expr in everything:
        (one, _), (many, instances) = (
            found(base, check.substitute(expr, job=job)) for job in ("one", "many")
        )
        if one is None or many is None:
            check.fault(f"{where}: cannot be asked")
        elif where in EMPTY:
            if one or many:
                check.fault(f"{where}: has data")
        elif not one:
            check.fault(f"{where}: no data")
        elif instances - {None}:
            of_instances += 1
        elif not equal(one, many):
            check.fault(f"{where}: {one} with one replica, {many} with two")
        else:
            compared += 1
    print(f"replicas: {compared} queries tell the same of one and of two, {of_instances} tell of each")


def check_totals(base):
    """Whether a burst is told as what it was, however long the steps and the scrapes are, and wherever the
    steps lie. How Grafana aligns them depends on the time zone."""
    count = 0
    for file, panel, target in check.totals():
        for job, step in itertools.product(BURSTS, (120, 300, 600)):
            expr = check.substitute(
                target["expr"],
                job=job,
                __rate_interval=f"{step + STEP}s",
                __interval=f"{step // 60}m",
                __interval_ms=str(step * 1000),
            )
            for offset in range(0, step, STEP):
                start = BURST_AT - step + offset
                answer = check.ask(
                    base, "/api/v1/query_range", query=expr, start=start, end=start + 2 * step, step=step
                )
                told = [sum(float(value) for _, value in it["values"]) for it in answer["data"]["result"]]
                if len(told) != 1 or not math.isclose(told[0], BURST):
                    where = f"{file}: {panel['title']} {target['refId']}"
                    check.fault(f"{where}: {told} of {BURST} ({job}, in steps of {step} s)")
                count += 1
    print(f"totals: {count} sums over bursts")


def main(arguments):
    if arguments == ["data"]:
        write_data()
    elif len(arguments) == 2 and arguments[0] == "compare":
        compare(arguments[1])
        check_totals(arguments[1])
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 1 if check.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
