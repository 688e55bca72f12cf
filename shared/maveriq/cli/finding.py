"""Which deployment is meant. Pure: what was typed and what there is in, one deployment out."""

from collections.abc import Sequence

from maveriq.cli.api import CommandFailed
from maveriq.contracts import Deployment, State

ENDED = (State.RELEASED, State.FAILED)


def find(target: str, known: Sequence[Deployment]) -> Deployment:
    """The deployment whose id starts with `target`, or the one live deployment of that model.

    Raises:
        CommandFailed: none, or more than one.
    """
    if not target:
        raise CommandFailed("name a model or a deployment", field="ID|MODEL", code="invalid", exit_code=2)
    by_id = [each for each in known if str(each.deployment_id).startswith(target.lower())]
    live = [each for each in known if each.intent.model == target and each.state not in ENDED and not each.dry_run]
    if len(by_id) == 1 and not live:
        return by_id[0]
    found = live or by_id
    if len(found) == 1:
        return found[0]
    if not found:
        names = sorted({each.intent.model for each in known if each.state not in ENDED and not each.dry_run})
        known_names = f"deployed now: {', '.join(names)}" if names else "nothing is deployed: maveriq deploy MODEL"
        raise CommandFailed(f"no deployment {target!r}; {known_names}", field="ID|MODEL", code="not_found")
    ids = ", ".join(str(each.deployment_id)[:8] for each in found)
    raise CommandFailed(f"{target!r} may mean {ids}; name one by its id", field="ID|MODEL", code="ambiguous")


def find_serving(target: str, known: Sequence[Deployment]) -> Deployment:
    """As `find`, but any of a model's deployments will do if it is ready: the newest.

    Raises:
        CommandFailed: none is found, or it does not serve.
    """
    ready = [each for each in known if each.intent.model == target and each.state is State.READY]
    if ready:
        return max(ready, key=lambda each: each.accepted_at)
    found = find(target, known)
    if found.state in ENDED or found.dry_run:
        was = "was a dry run" if found.dry_run else f"is {found.state}"
        raise CommandFailed(f"{target} {was}; maveriq deploy {found.intent.model}", field="ID|MODEL", code="gone")
    if found.state is not State.READY:
        takes = "takes no new requests" if found.state is State.DRAINING else "`maveriq ps` shows when it is ready"
        raise CommandFailed(f"{target} is {found.state}: {takes}", field="ID|MODEL", code="not_ready")
    return found
