"""How the suite is divided among processes when it runs with pytest-xdist's `-n`.

The tests of a file run in one process, one after the other, and so do those with the same
`xdist_group` mark, because they share a service or a browser. Some of these units mostly wait for
processes that they started, the others compute. Therefore most workers take the waiting units
first, and the others take them last.
"""

from pathlib import Path

import pytest
from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController

TESTS = Path(__file__).parent
FIRST = (
    "exposed-haproxy",
    "running",
    "kubernetes/test_ray_service.py",
    "batch",
    "batch/test_chaos.py",
    "cluster/test_lifecycle.py",
    "exposed-python",
    "cluster/test_autoscaling.py",
    "batch/test_through_service.py",
    "manifests/test_image.py",
    "browser",
    "hostile/test_decode_cost.py",
    "clients/test_openapi.py",
    "manifests/test_monitoring.py",
    "manifests/test_policies.py",
    "unit/commands/test_tagging_commands.py",
    "unit/siglip/images/test_plan.py",
    "unit/graph/test_render.py",
    "unit/hardware/test_footprint.py",
)
"""The units that take longest, the longest first: names of groups, or of files below `tests/`."""
COMPUTING_WORKERS = 2
"""Number of workers that take these units last."""


def unit_of(item: pytest.Item) -> str:
    """Return the name of the unit that a test belongs to: of its group, or of its file."""
    group = item.get_closest_marker("xdist_group")
    return str(group.args[0]) if group else item.path.relative_to(TESTS).as_posix()


def arrange(items: list[pytest.Item]) -> None:
    """Mark every test with its unit, and sort the tests by when their units should start."""
    position = {unit: i for i, unit in enumerate(FIRST)}
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(unit_of(item)))
    items.sort(key=lambda item: position.get(unit_of(item), len(FIRST)))


class FromBothEnds(LoadGroupScheduling):
    """Gives units from the front of the queue to most workers, and from its back to the others."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the order is that of `arrange`

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self._computes(node):
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)

    def _computes(self, node: WorkerController) -> bool:
        number = int(node.gateway.id.removeprefix("gw"))
        return self.numnodes > COMPUTING_WORKERS > number
