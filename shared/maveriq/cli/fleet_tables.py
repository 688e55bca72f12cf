"""A fleet as tables: what to rent, what it saves, who serves what. Pure: contract values in, text out."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from maveriq.cli.figures import amount, digits
from maveriq.cli.tables import columns
from maveriq.contracts.provisioning import Bucket, Fleet, Rented


def fleet_view(fleet: Fleet, shown: int) -> Group:
    """
    Args:
        shown: buckets listed, the busiest.
    """
    parts: list[RenderableType] = [_headline(fleet), Text(), _rented(fleet)]
    if fleet.changed:
        parts += [Text(), _changed(fleet)]
    parts += [Text(), _single_types(fleet), Text(), _buckets(fleet, shown)]
    parts += [Text(f"note: {note}", style="dim") for note in fleet.notes]
    return Group(*parts)


def fleet_name(rented: Rented) -> str:
    return f"{rented.name} (spot)" if rented.spot else rented.name


def _headline(fleet: Fleet) -> Text:
    text = Text(f"{_money(fleet.price_per_hour)} {fleet.currency} an hour", style="bold")
    text.append(f" for {digits(fleet.request_rate_per_s, 4)} requests a second; ", style="default")
    if fleet.gap <= 1e-9:
        return text.append("proven: nothing cheaper does", style="green")
    return text.append(f"at most {digits(fleet.gap * 100)} % above the cheapest possible", style="yellow")


def _rented(fleet: Fleet) -> Table:
    with_configuration = any(one.configuration for one in fleet.rented)
    titles = ["rent", "", *(["runs as"] if with_configuration else []), "GPUs", "each/h", "all/h", "busy"]
    table = columns(*titles, right=(0, *range(len(titles) - 4, len(titles))))
    for one in fleet.rented:
        table.add_row(
            f"{one.count:,} x", fleet_name(one), *([one.configuration] if with_configuration else []),
            f"{one.count * one.num_gpus:,}", digits(one.price_per_hour, 4), _money(one.price_per_hour * one.count),
            f"{one.utilisation * 100:.0f} %",
        )  # fmt: skip
    return table


def _changed(fleet: Fleet) -> Group:
    table = columns("from what runs", "now", "wanted", "", right=(1, 2))
    for one in fleet.changed:
        more = one.wanted - one.running
        do = f"rent {more:,}" if more > 0 else f"give back {-more:,}" if more < 0 else "keep"
        table.add_row(one.name, f"{one.running:,}", f"{one.wanted:,}", Text(do, style="bold" if more else "dim"))
    return Group(table, Text(f"the change costs {_money(fleet.change_cost)} {fleet.currency}, once", style="dim"))


def _single_types(fleet: Fleet) -> Table:
    table = columns("one GPU type alone", "instances", "per hour", "the fleet saves", right=(1, 2, 3))
    for one in fleet.single_types:
        if one.price_per_hour is None or one.saving is None:
            table.add_row(one.gpu_type, "", "", Text(one.problem, style="dim"))
        else:
            saving = "nothing" if one.saving < 5e-4 else f"{one.saving * 100:.1f} %"
            table.add_row(one.gpu_type, f"{one.count:,}", _money(one.price_per_hour), saving)
    return table


def _buckets(fleet: Fleet, shown: int) -> Group:
    table = columns("prompt to", "answer to", "requests/s", "served by", right=(0, 1, 2))
    busiest = sorted(fleet.buckets, key=lambda bucket: -bucket.request_rate_per_s)[:shown]
    for bucket in sorted(busiest, key=lambda one: (one.input_up_to, one.output_up_to)):
        table.add_row(
            f"{bucket.input_up_to:,.0f}", f"{bucket.output_up_to:,.0f}", amount(bucket.request_rate_per_s),
            ", ".join(_servers(fleet, bucket)),
        )  # fmt: skip
    left = len(fleet.buckets) - len(busiest)
    return Group(table, *([Text(f"and {left} smaller buckets: --top lists more", style="dim")] if left else []))


def _servers(fleet: Fleet, bucket: Bucket) -> Iterator[str]:
    for share in sorted(bucket.shares, key=lambda one: -one.share):
        name = fleet_name(fleet.rented[share.rented])
        yield name if share.share > 0.9995 else f"{name} {share.share * 100:.1f} %"


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.995 else digits(value)
