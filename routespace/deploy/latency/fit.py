"""Fitting a latency table to whole networks: a factor per group of parts, and an offset."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import lsq_linear

from routespace.deploy.latency.parts import GATES, PartKey, edge_key
from routespace.deploy.latency.table import LatencyTable, Subnet, merges
from routespace.grid.architecture import Architecture

PRIOR = 0.1  # one standard deviation of a factor from 1 …
SUBNET_NOISE = 0.02  # … and of the relative error of one measured subnet
LEAST_FACTOR = 0.1


def fit_factors(table: LatencyTable, measured: Mapping[Architecture, float]) -> LatencyTable:
    """Fit the groups' factors and the offset to whole subnets, and record them.

    Least squares of relative errors, with factors held near 1: a group that few subnets have stays as measured.

    Args:
        table: of the parts, without factors.
        measured: static architecture → milliseconds.
    """
    if not measured:
        return table
    groups = sorted({part.key.group for part in table.parts} - {GATES})
    rows = [_by_group(table, architecture) for architecture in measured]
    times = np.array(list(measured.values()))
    # Columns: factor - 1 of each group, then the offset in milliseconds.
    design = np.array([[*(row.get(group, 0.0) for group in groups), 1.0] for row in rows]) / times[:, None]
    target = 1 - design[:, :-1].sum(axis=1)
    prior = np.diag([*(1 / PRIOR for _ in groups), 0.0])[:-1]
    system = np.vstack([design / SUBNET_NOISE, prior])
    wanted = np.concatenate([target / SUBNET_NOISE, np.zeros(len(groups))])
    low = np.array([*(LEAST_FACTOR - 1 for _ in groups), 0.0])
    found = lsq_linear(system, wanted, bounds=(low, np.inf)).x
    return table.model_copy(
        update={
            "factors": {group: float(1 + value) for group, value in zip(groups, found[:-1], strict=True)},
            "offset_ms": float(found[-1]),
            "subnets": tuple(Subnet(edges=tuple(a.open_edges), ms=ms) for a, ms in measured.items()),
        }
    )


def _by_group(table: LatencyTable, architecture: Architecture) -> dict[str, float]:
    """Group → summed milliseconds of an architecture's parts."""
    spec = architecture.spec
    sums = {
        "rest": table.constant_ms
        + sum(n * table.ms(PartKey("merge", rate)) for rate, n in merges(architecture).items())
    }
    for name in architecture.edges:
        edge = architecture.grid.edges[name]
        if edge.kind == "identity":
            continue
        key = edge_key(spec, edge)
        sums[key.group] = sums.get(key.group, 0.0) + table.ms(key)
    return sums
