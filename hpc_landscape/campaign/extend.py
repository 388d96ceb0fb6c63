"""A new file that takes from an earlier one of the same run what both have: all ranks agree that it may."""

from __future__ import annotations

from ..errors import UserError
from ..ranks.comm import Comm
from ..store.earlier import find
from ..store.mixed import is_mixed
from ..store.resume import check_same
from .plan import Plan
from .recheck import compare_again, same_environment


def take_points(plan: Plan, comm: Comm) -> None:
    """Find the points that are there already; UserError where the file is of another run, or there are none.

    Every rank calls it, before the file is laid out: then they come into it. A dry run computes none again.
    """
    earlier = plan.extends
    if earlier is None:
        return
    with comm.raise_on_all_ranks():
        if comm.is_root:
            check_same(earlier, plan.identity())
            shapes = {quantity.name: quantity.shape for quantity in earlier.stored.quantities}
            if other := [q.name for q in plan.quantities if shapes.get(q.name) != q.shape]:
                raise UserError(
                    f"--extend {earlier.path}: '{other[0]}' is missing or of another shape there; restore a copy, or "
                    "leave out --extend"
                )
    with comm.raise_on_all_ranks():
        plan.taken = taken = find(earlier, plan.grid)
    if not plan.output.dry_run:
        compare_again(plan, earlier, int(taken.there[0]), comm)
    if comm.is_root:
        taken.mixed = not taken.alike or not same_environment(plan, earlier) or is_mixed(earlier.path)
