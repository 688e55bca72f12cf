"""The `maveriq` command. typer and rich are imported here and nowhere else in `maveriq`."""


def main() -> None:
    """Run the command that sys.argv names."""
    from maveriq.cli.app import run

    run()
