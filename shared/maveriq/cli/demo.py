"""x"""

from rich.console import Console


def run_demo(console: Console) -> None: ...
