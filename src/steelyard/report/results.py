"""``results.json``: every number of the report for machines, in full precision; shares as fractions of one."""

from __future__ import annotations

import dataclasses
from typing import Any

from steelyard.files import plain_json
from steelyard.report import text
from steelyard.report.assemble import BOOTSTRAP_SEED, Report
from steelyard.stats.analyse import Arm, Comparison, Table

SCHEMA = 1
"""Version of this file's layout."""


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain JSON values; what is not defined is ``null``."""
    analysis, results = report.analysis, report.results
    return plain_json(
        {
            "schema": SCHEMA,
            "study": results.name,
            "description": results.study.get("description") or results.config.get("description") or "",
            "axes": results.axes,
            "baseline": analysis.baseline,
            "treatment": analysis.treatment,
            "conditions": analysis.conditions,
            "methods": [dataclasses.asdict(method) for method in report.methods],
            "selection": results.study.get("selection"),
            "statistics": {
                "alpha": analysis.alpha,
                "level": analysis.level,
                "sd": "ddof=1",
                "test": "Welch t over seeds; one-sample t against an untrained model",
                "corrections": "Holm and Bonferroni within each table; p_holm_study over all comparisons",
                "comparisons": analysis.comparisons,
                "bootstrap_seed": BOOTSTRAP_SEED,
            },
            "summary": dataclasses.asdict(text.summary(report)),
            "conclusions": text.conclusions(report),
            "cautions": text.cautions(report),
            "tables": [_table(table) for table in analysis.tables],
            "swaps": [
                {"task": task, "measure": measure, **dataclasses.asdict(swap)}
                for (task, measure), found in report.swaps.items()
                for swap in found
            ],
            "rows": [dataclasses.asdict(row) for row in results.rows],
            "costs": [
                {
                    "arm": c.arm,
                    "condition": c.condition,
                    "runs": c.runs,
                    **c.values,
                    "generation_share": c.generation_share,
                }
                for c in report.costs
            ],
            "runs": [
                {"run": run.id, "cell": run.cell, "weights_sha256": run.facts.get("weights_sha256")}
                for run in results.runs
            ],
            "gaps": [dataclasses.asdict(gap) for gap in results.gaps],
            "failures": [dataclasses.asdict(failure) for failure in report.failures],
            "notes": [*results.notes, *(results.study.get("notes") or [])],
            "provenance": report.provenance,
        }
    )


def _table(table: Table) -> dict[str, Any]:
    return {
        "task": table.task.name,
        "version": table.task.version,
        "role": table.task.role,
        "kind": table.task.kind,
        "split": table.task.split,
        "items": len(table.task.items),
        "measure": table.measure,
        "condition": table.condition,
        "baseline": table.baseline,
        "design": dataclasses.asdict(table.design),
        "arms": [_arm(arm) for arm in table.arms],
        "comparisons": [_comparison(comparison) for comparison in table.comparisons],
        "pairs": [dataclasses.asdict(pair) for pair in table.pairs],
        "absent": table.absent,
    }


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "arm": arm.name,
        **dataclasses.asdict(arm.summary),
        "interval": arm.interval and dataclasses.asdict(arm.interval),
        "interval_seeds_and_items": arm.crossed and dataclasses.asdict(arm.crossed),
        "values": arm.values,
        "letters": arm.letters,
        "means": arm.extras,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    plain = dataclasses.asdict(comparison)
    test = plain.pop("test")
    return {"arm": plain.pop("arm"), **test, **plain}
