"""The checks of check.sh that look into the files: JSON, names, queries.

    check.py files                       what needs nothing but the files
    check.py grafana                     the rules with what Grafana's own rules and some panels ask, for
                                         Prometheus
    check.py parse PROMETHEUS            every PromQL query, parsed by a Prometheus
    check.py live PROMETHEUS SECONDS     every PromQL query, asked of a Prometheus that scrapes the demo

Needs Python 3.9 and PyYAML. Exits with 1 and a line for every fault.
"""

import json
import math
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RULES = HERE / "rules" / "opsramp-exporter.rules.yml"
ALERTING = HERE / "grafana" / "provisioning" / "alerting" / "opsramp-exporter.yml"

# What is empty while all is well. Every other query must bring data; these must bring none.
EMPTY_IN_HEALTH = {
    ("opsramp-exporter.json", "annotation Firing alerts", ""): "no alert of ours fires",
    ("opsramp-exporter.json", "Last poll succeeded", "B"): "the demo looks up no clients",
}
# What the demo records nothing of, for the same reason.
NOT_RECORDED = {
    "job_instance_account:opsramp_discovery_known:zero_timestamp",
    "job_instance_account:opsramp_discovery_up:timestamp",
}

# What panels ask that is tested like a rule: file, panel, query, and what its answer is recorded as.
TESTED_PANELS = {
    ("opsramp-exporter.json", "Searches failing", "A"): "dashboard:searches_failing",
    ("opsramp-exporter.json", "Searches", "Up"): "dashboard:searches_up",
    ("opsramp-exporter.json", "Last poll succeeded", "A"): "dashboard:last_poll_succeeded",
}

# What Grafana would put in their place.
VARIABLES = {
    "job": ".+",
    "account": ".+",
    "tenant": ".+",
    "search": ".+",
    "__rate_interval": "1m",
    "__range": "5m",
    "__interval": "15s",
    "__interval_ms": "15000",
}

# The shortest step of a panel whose legend tells totals: two scrapes of a minute. In shorter steps, what is
# drawn would jump up and down between scrapes.
TOTALS_INTERVAL = "2m"
TOTAL = (
    r"sum by \([\w, ]+\) \((?P<now>last_over_time\((?P<what>\w+\{.*?\})\[5m\]\))"
    r" - (?P<then>last_over_time\((?P=what)\[5m\] offset \$__interval\))"
    r" \* \((?P=then) <= bool (?P=now)\)\)"
)

faults = []


def fault(text):
    faults.append(text)
    print(f"FAULT: {text}")


def dashboards():
    for path in sorted(HERE.glob("*.json")):
        yield path, json.loads(path.read_text(encoding="utf-8"))


def panels(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def data_source_kind(dashboard):
    return next(v["query"] for v in dashboard["templating"]["list"] if v["type"] == "datasource")


def queries(kind):
    """Every query of the dashboards: file, what it is of, its id, its text, whether it is instant."""
    for path, dashboard in dashboards():
        if data_source_kind(dashboard) != kind:
            continue
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                instant = target.get("instant", False)
                yield path.name, panel["title"], target["refId"], target["expr"], instant
        for annotation in dashboard["annotations"]["list"]:
            if "expr" in annotation:
                yield path.name, f"annotation {annotation['name']}", "", annotation["expr"], True
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query" and kind == "prometheus":
                expr = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"]).group(1)
                yield path.name, f"variable {variable['name']}", "", expr, True


def totals():
    """Every PromQL query whose values the legend sums up: file, panel, query."""
    for path, dashboard in dashboards():
        if data_source_kind(dashboard) == "prometheus":
            for panel in panels(dashboard):
                if "sum" in legend_values(panel):
                    yield from ((path.name, panel, target) for target in panel["targets"])


def legend_values(panel):
    return panel.get("options", {}).get("legend", {}).get("calcs", [])


def rules():
    """Every Prometheus rule: its name, its expression, and the rule itself."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"], rule


def grafana_rules():
    """Every PromQL query of the alert rules that Grafana manages."""
    for group in yaml.safe_load(ALERTING.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            for query in rule["data"]:
                if query["datasourceUid"] != "__expr__":
                    # Grafana puts the environment's variables into this file.
                    yield rule["title"], query["model"]["expr"].replace("$$", "$")


def substitute(expr, **chosen):
    for name, value in {**VARIABLES, **chosen}.items():
        expr = re.sub(rf"\$(?:{name}\b|\{{{name}\}})", value, expr)
    return expr


def grafana_as_rules():
    """The rules, where the last known number of alerts is what Grafana asks for itself, and with the
    alert that only Grafana has: what it asks is recorded as grafana:not_watched. So is what the
    TESTED_PANELS ask."""
    asked = dict(grafana_rules())
    rules_file = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in rules_file["groups"]:
        for rule in group["rules"]:
            if rule.get("record") == "job_account_tenant_search:opsramp_search_total_results:last_known":
                rule["expr"] = asked["OpsRampOpenAlertsHigh"]
    for group in yaml.safe_load(ALERTING.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            if rule["title"] == "OpsRampNotWatched":
                recorded = {"record": "grafana:not_watched", "expr": asked[rule["title"]]}
                alert = {
                    "alert": rule["title"],
                    "expr": "grafana:not_watched > 0",
                    "for": rule["for"],
                    "labels": rule["labels"],
                    "annotations": {
                        name: text.replace("$$", "$") for name, text in rule["annotations"].items()
                    },
                }
                rules_file["groups"].append({"name": "grafana", "rules": [recorded, alert]})
    asked = {(name, what, ref): expr for name, what, ref, expr, _ in queries("prometheus")}
    rules_file["groups"].append(
        {
            "name": "dashboard",
            "rules": [
                {"record": record, "expr": substitute(asked[panel])}
                for panel, record in TESTED_PANELS.items()
            ],
        }
    )
    return yaml.safe_dump(rules_file)


# --- without a Prometheus


def check_files():
    known = known_metrics()
    recorded = {name for name, _, rule in rules() if "record" in rule}
    check_dashboards()
    everything = [(f"{name}: {what} {ref}", expr) for name, what, ref, expr, _ in queries("prometheus")]
    everything += [(f"rule {name}", expr) for name, expr, _ in rules()]
    everything += [(f"Grafana's rule {name}", expr) for name, expr in grafana_rules()]
    used = set()
    for where, expr in everything:
        for name in re.findall(r"(?<![\w:$])[a-z_]+:[\w:]+", expr):
            if name not in recorded:
                fault(f"{where} uses {name}, which no rule records")
        for name in re.findall(r"(?<![\w:])(?:opsramp|process)_[a-z_]+(?![\w:])", expr):
            used.add(name)
            if name not in known:
                fault(f"{where} uses {name}, which docs/metrics.md does not know")
        for name, inside in re.findall(r"\b(\w+_total)\b(?:\{[^}]*\})?(\[?)", expr):
            if not inside:
                fault(f"{where} uses the counter {name} without a rate")
        if "$" in substitute(expr):
            fault(f"{where} uses a variable that is not known: {expr}")
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbook, re.M | re.S))
    alerts = {name: rule for name, _, rule in rules() if "alert" in rule}
    for name, rule in alerts.items():
        for annotation in ("summary", "description", "runbook_url"):
            if not rule["annotations"].get(annotation):
                fault(f"rule {name} has no {annotation}")
        if rule["labels"].get("severity") not in ("critical", "warning", "info"):
            fault(f"rule {name} has no severity")
        if rule["annotations"]["runbook_url"] != f"docs/runbook.md#{name.lower()}":
            fault(f"rule {name} does not lead to its section of the runbook")
        if name not in sections:
            fault(f"docs/runbook.md has no section {name}")
        for heading in ("Meaning", "Impact", "Diagnosis", "Mitigation"):
            if f"### {heading}\n" not in sections.get(name, ""):
                fault(f"docs/runbook.md, {name}, has no {heading}")
    check_tests(set(alerts))
    check_regular_expressions()
    of_grafana = set()
    for group in yaml.safe_load(ALERTING.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            of_grafana.add(rule["title"])
            if rule["annotations"]["runbook_url"] != f"docs/runbook.md#{rule['title'].lower()}":
                fault(f"Grafana's rule {rule['title']} does not lead to its section of the runbook")
            if rule["title"] not in sections:
                fault(f"docs/runbook.md has no section {rule['title']}")
    for name in sections.keys() - alerts.keys() - of_grafana:
        if name.startswith("OpsRamp"):
            fault(f"docs/runbook.md has a section {name}, but there is no such alert")
    print(f"files: {len(everything)} queries, {len(used)} metrics, {len(alerts)} alerts")


def known_metrics():
    table = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    known = set()
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.M):
        known |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return known


def check_dashboards():
    uids = set()
    for path, dashboard in dashboards():
        if dashboard["uid"] in uids:
            fault(f"{path.name}: the uid {dashboard['uid']} is taken")
        uids.add(dashboard["uid"])
        ids, cells = set(), {}
        for panel in panels(dashboard):
            where = f"{path.name}: {panel.get('title')}"
            if panel["id"] in ids:
                fault(f"{where}: the id {panel['id']} is taken")
            ids.add(panel["id"])
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    if x >= 24 or cells.setdefault((x, y), panel["id"]) != panel["id"]:
                        fault(f"{where}: lies on another panel or beside the page")
            if panel["type"] == "row":
                continue
            for key in ("title", "description", "targets"):
                if not panel.get(key):
                    fault(f"{where}: has no {key}")
            if not panel["fieldConfig"]["defaults"].get("unit"):
                fault(f"{where}: has no unit")
            refs = [target["refId"] for target in panel["targets"]]
            if len(refs) != len(set(refs)):
                fault(f"{where}: two queries share an id")
            for target in panel["targets"]:
                if target["datasource"]["uid"] != "${datasource}":
                    fault(f"{where}: does not use the chosen data source")
                if re.search(r"\b(rate|increase)\(", target["expr"]) and "$__rate_interval]" not in target["expr"]:
                    fault(f"{where}: a rate over something else than $__rate_interval")
            sort = panel.get("options", {}).get("legend", {}).get("sortBy")
            if "sum" in legend_values(panel) and sort != "Total":
                fault(f"{where}: the legend is sorted by {sort}, which it does not show")
    check_totals()


def check_totals():
    """A total in a legend is the sum of the values drawn, so each must be of its step alone: what a counter
    says at the step's end less what it said at the beginning, or all that it says if it began anew. Rates
    and increases are of what lies between the first and the last sample of their window. Such windows
    overlap or leave gaps between them, unless they are a step and exactly one scrape long; Grafana does not
    know how long a scrape is. Samples of five minutes count, so that a failed scrape at the end of a step
    does not take what lies on both sides of it."""
    for file, panel, target in totals():
        where = f"{file}: {panel['title']} {target['refId']}"
        if not re.fullmatch(TOTAL, target["expr"]):
            fault(f"{where}: the legend's total is of values that are not a difference over the step")
        if panel.get("interval") != TOTALS_INTERVAL:
            fault(f"{where}: the legend's total is of steps that may be shorter than {TOTALS_INTERVAL}")


def check_regular_expressions():
    """What people type as a regular expression reaches Loki as it is: between double quotes a
    backslash means something else, and Grafana puts some before apostrophes. Links hand names on as
    text: between \\Q and \\E."""
    typed = {
        variable["name"]
        for _, dashboard in dashboards()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "textbox"
    }
    for file, what, ref, expr, _ in queries("loki"):
        for name in typed:
            rest = re.sub(rf"`[^`]*\$\{{{name}:raw\}}`", "", expr)
            if re.search(rf"\$\{{?{name}\b", rest):
                fault(f"{file}: {what} {ref}: {name} does not reach Loki as it was typed")
    for path, _ in dashboards():
        for name, value in re.findall(r"[?&]var-(\w+)=([^&\"]+)", path.read_text(encoding="utf-8")):
            if name in typed and not re.fullmatch(r"%5CQ\$\{[\w.]+:percentencode\}%5CE", value):
                fault(f"{path.name}: a link hands {value} on as a regular expression for {name}")


def check_tests(alerts):
    """Every alert is expected to fire somewhere, and to be silent somewhere."""
    fires, silent = set(), set()
    for path in sorted((HERE / "rules" / "tests").glob("*.yml")):
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for case in test.get("alert_rule_test", []):
                (fires if case.get("exp_alerts") else silent).add(case["alertname"])
    for name in sorted(alerts - fires):
        fault(f"no test expects {name} to fire")
    for name in sorted(alerts - silent):
        fault(f"no test expects {name} to be silent")


# --- with a Prometheus


def ask(base, path, **parameters):
    body = urllib.parse.urlencode(parameters).encode()
    request = urllib.request.Request(f"{base}{path}", data=body if parameters else None)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        answer = error.read().decode(errors="replace")
        try:
            return json.loads(answer)
        except json.JSONDecodeError:
            return {"status": "error", "error": f"{error.code}: {answer}"}


def check_parse(base):
    count = 0
    everything = [(f"{name}: {what} {ref}", expr) for name, what, ref, expr, _ in queries("prometheus")]
    everything += [(f"rule {name}", expr) for name, expr, _ in rules()]
    everything += [(f"Grafana's rule {name}", expr) for name, expr in grafana_rules()]
    for where, expr in everything:
        answer = ask(base, "/api/v1/format_query", query=substitute(expr))
        if answer["status"] != "success":
            fault(f"{where}: {answer['error']}")
        count += 1
    print(f"parse: {count} queries")


def has_data(answer):
    for series in answer["data"]["result"]:
        for _, value in series.get("values") or [series["value"]]:
            if not math.isnan(float(value)):
                return True
    return False


def check_live(base, seconds):
    wait_for(base, seconds)
    now = time.time()
    count = 0
    for name, what, ref, expr, instant in queries("prometheus"):
        if instant:
            answer = ask(base, "/api/v1/query", query=substitute(expr), time=now)
        else:
            answer = ask(
                base, "/api/v1/query_range", query=substitute(expr), start=now - seconds, end=now, step=1
            )
        count += 1
        where = f"{name}: {what} {ref}".rstrip()
        if answer["status"] != "success":
            fault(f"{where}: {answer['error']}")
        elif has_data(answer) == ((name, what, ref) in EMPTY_IN_HEALTH):
            fault(f"{where}: {'data in health' if has_data(answer) else 'no data'}: {substitute(expr)}")
    for name, expr in [(name, expr) for name, expr, _ in rules()] + list(grafana_rules()):
        answer = ask(base, "/api/v1/query", query=substitute(expr), time=now)
        count += 1
        if answer["status"] != "success":
            fault(f"rule {name}: {answer['error']}")
    for name, expr in grafana_rules():
        if not has_data(ask(base, "/api/v1/query", query=expr, time=now)):
            fault(f"Grafana's rule {name}: no data")
    # What Prometheus itself makes of the rules.
    for group in ask(base, "/api/v1/rules")["data"]["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                fault(f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}")
            if rule["type"] == "recording":
                recorded = has_data(ask(base, "/api/v1/query", query=rule["name"], time=now))
                if recorded == (rule["name"] in NOT_RECORDED):
                    fault(f"rule {rule['name']} records {'something' if recorded else 'nothing'}")
            if rule["type"] == "alerting" and rule["state"] == "firing":
                fault(f"alert {rule['name']} fires in health")
    print(f"live: {count} queries")


def wait_for(base, seconds):
    """Until the demo has been scraped for so long, and every rule has been evaluated."""
    deadline = time.monotonic() + seconds + 60
    while time.monotonic() < deadline:
        scraped = ask(base, "/api/v1/query", query="count_over_time(opsramp_polls_total[10m])")
        counts = [int(series["value"][1]) for series in scraped["data"]["result"]]
        groups = ask(base, "/api/v1/rules")["data"]["groups"]
        evaluated = all(rule["health"] != "unknown" for group in groups for rule in group["rules"])
        if counts and min(counts) >= seconds and groups and evaluated:
            return
        time.sleep(1)
    fault("the demo was not scraped in time")


def main(arguments):
    if arguments == ["files"]:
        check_files()
    elif arguments == ["grafana"]:
        print(grafana_as_rules())
    elif len(arguments) == 2 and arguments[0] == "parse":
        check_parse(arguments[1])
    elif len(arguments) == 3 and arguments[0] == "live":
        check_live(arguments[1], int(arguments[2]))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
