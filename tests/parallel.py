"""How the suite is divided among processes when it runs with pytest-xdist's `-n`.

The tests of a unit run in one process, one after the other, because they share a service, a
cluster or a browser. A unit is a file unless `UNITS` says otherwise. Some units mostly wait for
processes that they started, the others compute. Therefore most workers take the waiting units
first, and the others take them last.

pytest-xdist's own `--dist loadgroup` is not used: with pytest 9.2 it ignores the marks.
"""

import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

TESTS = Path(__file__).parent
EXPOSED = "exposed"
"""Unit of the files that share the fixture `exposed`, separately for each of its ingresses."""
PYTHON_INGRESS = re.compile(r"[\[-]python[\]-]")
"""The parameter of `exposed` in a test's name."""
UNITS = {
    "cluster/test_dashboard.py": "cluster",
    "cluster/test_deployed_beside_another.py": "cluster",
    "cluster/test_face.py": "cluster",
    "cluster/test_graph.py": "cluster",
    "hostile/test_overload.py": EXPOSED,
    "hostile/test_ports.py": EXPOSED,
    "hostile/test_two_services.py": EXPOSED,
    "batch/test_faulty_store.py": "batch",
    "batch/test_jobs.py": "batch",
    "batch/test_poison.py": "batch",
    "batch/test_shown.py": "batch",
    "batch/test_update.py": "batch",
    "browser/test_accessibility.py": "browser",
    "browser/test_page.py": "browser",
}
"""The unit of a file below `tests/` that shares something with other files."""
FIRST = (
    f"{EXPOSED} haproxy",
    "cluster",
    "kubernetes/test_ray_service.py",
    "batch",
    "batch/test_chaos.py",
    "cluster/test_lifecycle.py",
    f"{EXPOSED} python",
    "cluster/test_autoscaling.py",
    "batch/test_through_service.py",
    "manifests/test_image.py",
    "browser",
    "hostile/test_decode_cost.py",
    "clients/test_openapi.py",
    "manifests/test_monitoring.py",
    "manifests/test_policies.py",
    "unit/commands/test_tagging_commands.py",
    "unit/images/test_decoding_plan.py",
    "unit/graph/test_serve_config.py",
    "unit/hardware/test_footprint.py",
)
"""The units that take longest, the longest first."""
COMPUTING_WORKERS = 2
"""Number of workers that take the units of `FIRST` last, if there are more workers than these."""


def unit_of(nodeid: str) -> str:
    """Return the unit of a test."""
    path, _, name = nodeid.removeprefix("tests/").partition("::")
    unit = UNITS.get(path, path)
    if unit == EXPOSED:
        return f"{unit} python" if PYTHON_INGRESS.search(name) else f"{unit} haproxy"
    return unit


class FromBothEnds(LoadScopeScheduling):
    """Gives the units of `FIRST` to most workers, and the other units to the other workers."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(self._next_unit(node), last=False)
        super()._assign_work_unit(node)

    def _next_unit(self, node: WorkerController) -> str:
        waiting = [unit for unit in FIRST if unit in self.workqueue]
        others = [unit for unit in self.workqueue if unit not in FIRST]
        number = int(node.gateway.id.removeprefix("gw"))
        if self.numnodes > COMPUTING_WORKERS > number:
            return [*others, *reversed(waiting)][0]
        return [*waiting, *others][0]
