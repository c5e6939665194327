"""What has to be done so that what is served is what was decided: pure functions over what is wanted and what is there.

`plan` is called again and again; each step that was carried out changes what is there, and where all is as it should
be the plan is empty. `deployer` carries the steps out. Nothing is routed to before it is attested; what is served stays
until something else may take its place; what nobody names any more goes after the calls that it was answering.
"""

import msgspec

from babylon_rl.serving.routing import ExperimentRoute, Routes, Target

NOTHING = Routes(promoted=None, base=None)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided, by checkpoint ids.

    `promoted`: None before there is a promotion; `base`: the base model beside it, None where a service answers that
    names none. `spare`: what was promoted before, kept ready so that a rollback loads nothing. `candidate` and
    `baseline`: of the experiment that runs; `coming`: candidate of the one that follows it, made ready before its first
    window. `versions`: by id what tells a checkpoint from itself later (weights,
    place, the decision); one that was refused is tried again when it changes.
    """

    promoted: str | None
    base: str | None
    spare: str | None = None
    candidate: str | None = None
    baseline: str | None = None
    coming: str | None = None
    experiment: ExperimentRoute | None = None
    versions: dict[str, str] = {}


class Actual(msgspec.Struct, frozen=True, kw_only=True):
    """What is there.

    `routes`: as they were written last. `ready`: attested targets whose process lives. `fresh`: of these, those whose
    attestation is young enough to switch to them. `busy`: being prepared. `refused`: not to be tried again yet.
    `resting`: taken out of the routes so lately that calls may still be answered there.
    """

    routes: Routes = NOTHING
    ready: dict[str, Target] = {}
    fresh: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    resting: frozenset[str] = frozenset()


class Prepare(msgspec.Struct, frozen=True):
    """Find or load what answers for the checkpoint, and have it attested."""

    checkpoint_id: str


class Route(msgspec.Struct, frozen=True):
    """Write the routes: from then on agents' calls go there."""

    routes: Routes


class Retire(msgspec.Struct, frozen=True):
    """Unload what answers for the checkpoint; nobody is sent there any more."""

    checkpoint_id: str


Step = Prepare | Route | Retire


def plan(wanted: Wanted, actual: Actual) -> list[Step]:
    """The steps to take now: what to prepare, the new routes where they differ, and what to let go, in this order."""
    routes = routes_for(wanted, actual)
    steps: list[Step] = [Prepare(one) for one in _to_prepare(wanted, actual, routes)]
    if routes != actual.routes:
        # What leaves the routes now may be answering calls: it is let go by a later plan.
        return [*steps, Route(routes)]
    kept = {*_named(wanted), *routes.targets}
    gone = sorted(set(actual.ready) - kept - actual.resting - actual.busy)
    return [*steps, *(Retire(one) for one in gone)]


def routes_for(wanted: Wanted, actual: Actual) -> Routes:
    """The routes that what is ready allows.

    A role goes to what is wanted once that is ready and freshly attested, and stays where it was until then. The
    experiment takes place only where its baseline is what answers outside of it: else it would compare something else.
    """
    before = actual.routes
    promoted = _switched(wanted.promoted, before.promoted, actual)
    if promoted is None and wanted.promoted in actual.refused and wanted.spare in actual.fresh:
        promoted = actual.ready[wanted.spare]  # after a restart the old one is what was promoted before
    base = _switched(wanted.base, before.base, actual)
    if (
        promoted is None
        and before.base is None
        and wanted.promoted is not None
        and wanted.promoted not in actual.refused
    ):
        base = None  # after a start agents wait for what is promoted, and do not get the base model meanwhile
    candidate = None
    standing = promoted or base
    if wanted.experiment is not None and standing is not None and standing.checkpoint_id == wanted.baseline:
        candidate = _switched(wanted.candidate, before.candidate, actual)
        if candidate is not None and candidate.checkpoint_id != wanted.candidate:
            candidate = None  # of another experiment
    roles = {one.checkpoint_id: one for one in (base, promoted, candidate) if one is not None}
    named = {one: actual.ready[one] for one in _named(wanted) if one in actual.ready}
    return Routes(
        promoted=promoted,
        base=base,
        candidate=candidate,
        experiment=wanted.experiment if candidate is not None else None,
        targets=dict(sorted({**named, **roles}.items())),
    )


def _switched(wanted: str | None, before: Target | None, actual: Actual) -> Target | None:
    """Where a role goes: to what is wanted where it may, else where it went before."""
    if wanted is None:
        return None
    if wanted in actual.ready and (wanted in actual.fresh or (before and before.checkpoint_id == wanted)):
        return actual.ready[wanted]
    return None if before is None else actual.ready.get(before.checkpoint_id, before)


def _to_prepare(wanted: Wanted, actual: Actual, routes: Routes) -> list[str]:
    """What is not ready, and what is ready but has to be attested again before it is switched to."""
    roles = ((wanted.promoted, routes.promoted), (wanted.base, routes.base))
    if routes.candidate is None and wanted.candidate is not None:
        roles = (*roles, (wanted.candidate, None))
    if routes.promoted is None and wanted.promoted in actual.refused:
        roles = (*roles, (wanted.spare, None))  # it takes the place, once it is attested again
    waiting = {name for name, target in roles if name and (target is None or target.checkpoint_id != name)}
    # What is served although something else is wanted is kept alive too.
    served = [target.checkpoint_id for target in (routes.promoted, routes.base) if target is not None]
    due = [
        one
        for one in dict.fromkeys([*_named(wanted), *served])
        if one not in actual.ready or (one in waiting and one not in actual.fresh)
    ]
    return [one for one in due if one not in actual.busy and one not in actual.refused]


def _named(wanted: Wanted) -> list[str]:
    """All checkpoints that are to be there, the most urgent first."""
    named = (wanted.promoted, wanted.base, wanted.candidate, wanted.coming, wanted.spare)
    return [one for one in dict.fromkeys(named) if one is not None]


def unrouted(wanted: Wanted, routes: Routes) -> str | None:
    """Why the experiment that is wanted does not take place; None where it does, or none is wanted."""
    if wanted.experiment is None or routes.candidate is not None:
        return None
    standing = routes.promoted or routes.base
    if standing is None or standing.checkpoint_id != wanted.baseline:
        served = "nothing" if standing is None else standing.checkpoint_id
        return (
            f"The experiment {wanted.experiment.experiment_id} compares {wanted.candidate} with {wanted.baseline}, and "
            f"{served} is served: all agents get that. Promote {wanted.baseline}, or stop the experiment."
        )
    return f"The experiment {wanted.experiment.experiment_id} waits for {wanted.candidate}."
