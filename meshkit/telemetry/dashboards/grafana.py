"""Dashboards as Grafana reads them: panels in rows, and the variables that their queries are picked by.

They are of the classic model, which every Grafana imports:
https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

_SCHEMA = 42  # of the model; an older Grafana takes what it knows of it
_COLUMNS = 24
_TAG = "meshkit"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Without a call there is no share of calls, and no latency.
_NOTHING = {"type": "special", "options": {"match": "nan", "result": {"text": "no calls", "index": 0}}}

# The dashboard of what a label names, and the variable that picks it there.
_LEADS_TO = {"service_name": ("service", "service"), "rpc_method": ("endpoint", "method")}


class Column(NamedTuple):
    """A column of a table: its heading, the unit of its numbers, and the query."""

    title: str
    unit: str
    query: str


class Panel(NamedTuple):
    """A panel: lines over time, one number, or a table.

    Attributes:
        title: What it shows.
        unit: What its numbers are, as Grafana calls it.
        queries: By what their series are called; `""` where the label says it all.
        by: The label whose values the series stand for, if they do.
        kind: As Grafana calls it.
        columns: Of a table, in place of queries.
        note: How to read it.
    """

    title: str
    unit: str
    queries: Mapping[str, str]
    by: str = ""
    kind: str = "timeseries"
    columns: Sequence[Column] = ()
    note: str = ""


Rows = Mapping[str, Sequence[Panel]]
"""Panels, below their headings."""


def dashboard(name: str, title: str, rows: Rows, variables: Sequence[Json]) -> Json:
    """A dashboard.

    Args:
        name: What others link to.
        title: What people see.
        rows: What is in it.
        variables: What picks series, beside the data source and the scrape job.
    """
    source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    others = {
        "type": "dashboards",
        "tags": [_TAG],
        "title": "Dashboards",
        "icon": "external link",
        "tooltip": "",
    }
    shown = {"asDropdown": True, "includeVars": True, "keepTime": True, "targetBlank": False}
    return {
        "uid": f"{_TAG}-{name}",
        "title": f"meshkit: {title}",
        "tags": [_TAG],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "graphTooltip": 1,  # the line under the pointer is in all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [source, *variables]},
        "links": [others | shown],
        "panels": list(_laid_out(rows)),
    }


def variable(name: str, series: str, label: str, *, many: bool = False) -> Json:
    """What picks series by the values of a label.

    Args:
        name: In queries, `$name`.
        series: Where the values are found.
        label: Whose values.
        many: Whether several may be picked; all are, at first.
    """
    return {
        "type": "query",
        "name": name,
        "label": name.capitalize(),
        "datasource": _SOURCE,
        "query": {"query": f"label_values({series}, {label})", "refId": name},
        "refresh": 2,  # whenever the range of time changes
        "sort": 1,  # alphabetically
    } | ({"multi": True, "includeAll": True, "current": {"text": "All", "value": "$__all"}} if many else {})


def _laid_out(rows: Rows) -> Iterator[Json]:
    number = top = 0
    for title, panels in rows.items():
        number += 1
        place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top += 1
        left = tallest = 0
        for panel in panels:
            number += 1
            width, height = {"stat": (4, 4), "table": (12, 8)}.get(panel.kind, (8, 8))
            if left + width > _COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            yield {"id": number, "gridPos": {"x": left, "y": top, "w": width, "h": height}} | _panel(panel)
            left, tallest = left + width, max(tallest, height)
        top += tallest


def _panel(panel: Panel) -> Json:
    common = {"type": panel.kind, "title": panel.title, "description": panel.note, "datasource": _SOURCE}
    if panel.columns:
        return common | _table(panel)
    defaults: Json = {
        "unit": panel.unit,
        "mappings": [_NOTHING],
        "links": _links(panel.by, "__field.labels." + panel.by),
    }
    if panel.unit == "percentunit":
        defaults["max"] = 1
    options = {"tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "textMode": "value_and_name" if any(panel.queries) else "value",
        }
    names = [
        " ".join(filter(None, (called, f"{{{{{panel.by}}}}}" if panel.by else "")))
        for called in panel.queries
    ]
    targets = [
        _target(number, query) | {"legendFormat": name or panel.title, "range": True}
        for number, (name, query) in enumerate(zip(names, panel.queries.values(), strict=True))
    ]
    return common | {
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def _table(panel: Panel) -> Json:
    """The newest value of each column's query, in one row for each value of the label."""
    targets = [
        _target(number, column.query) | {"format": "table", "instant": True, "range": False}
        for number, column in enumerate(panel.columns)
    ]
    values = {
        f"Value #{target['refId']}": column for target, column in zip(targets, panel.columns, strict=True)
    }
    shown = {
        "excludeByName": {"Time": True},
        "renameByName": {value: column.title for value, column in values.items()},
        "indexByName": {panel.by: 0},
    }
    units = [_override(column.title, "unit", column.unit) for column in panel.columns]
    return {
        "fieldConfig": {
            "defaults": {"mappings": [_NOTHING]},
            "overrides": [_override(panel.by, "links", _links(panel.by, "__value.text")), *units],
        },
        "options": {"showHeader": True},
        "targets": targets,
        "transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": shown}],
    }


def _override(field: str, what: str, value: object) -> Json:
    return {"matcher": {"id": "byName", "options": field}, "properties": [{"id": what, "value": value}]}


def _target(number: int, query: str) -> Json:
    return {"refId": chr(ord("A") + number), "datasource": _SOURCE, "editorMode": "code", "expr": query}


def _links(label: str, value: str) -> list[Json]:
    """To the dashboard of what a label names."""
    if label not in _LEADS_TO:
        return []
    name, picked_by = _LEADS_TO[label]
    same = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
    return [
        {"title": f"The {name}", "url": f"/d/{_TAG}-{name}?var-{picked_by}=${{{value}:percentencode}}&{same}"}
    ]
