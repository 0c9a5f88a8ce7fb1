"""Tables, status lines and progress bars that are safe to use with untrusted text.

rich interprets markup such as `[red]` and `[link=…]` in the text that it prints, and does not
remove escape sequences. The consoles of this module escape both. No other module creates a console.
`printable.py` prints plain lines.
"""

from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from serve_app.terminal.printable import printable, printable_lines

PLAIN_WIDTH = 120
"""Number of columns if standard output is not a terminal, unless a command needs more."""


class SafeConsole(Console):
    """A console that ignores markup and escapes hidden characters in the lines that it prints."""

    def __init__(self, *, stderr: bool, plain_width: int) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = plain_width

    def print(self, *objects: Any, **options: Any) -> None:
        """Print lines and tables; see `rich.console.Console.print`."""
        safe = (printable_lines(one) if isinstance(one, str) else one for one in objects)
        super().print(*safe, **options)


def output_console(plain_width: int = PLAIN_WIDTH) -> SafeConsole:
    """Return a console on standard output.

    Args:
        plain_width: Number of columns if standard output is not a terminal.
    """
    return SafeConsole(stderr=False, plain_width=plain_width)


def error_console() -> SafeConsole:
    """Return a console on standard error, for status lines and progress bars."""
    return SafeConsole(stderr=True, plain_width=PLAIN_WIDTH)


class SafeTable(Table):
    """A table without borders, whose cells are single lines with hidden characters escaped."""

    def __init__(self, *headers: str) -> None:
        super().__init__(*headers, box=None, pad_edge=False)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; see `rich.table.Table.add_row`."""
        safe = (printable(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*safe, **options)


def facts_table() -> SafeTable:
    """Return a table of names and values without a header."""
    table = SafeTable("", "")
    table.show_header = False
    table.collapse_padding = True
    table.padding = (0, 2)
    return table


def styled(text: str, style: str = "") -> Text:
    """Return text in a style such as `bold`, with hidden characters escaped."""
    return Text(printable(text), style)


def progress(console: Console, *columns: str | ProgressColumn, disable: bool = False) -> Progress:
    """Return a progress bar that disappears when it ends; `columns` are shown after the bar."""
    shown = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    return Progress(
        *shown, *columns, TimeRemainingColumn(), console=console, transient=True, disable=disable
    )
