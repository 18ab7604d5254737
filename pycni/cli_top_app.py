"""The full-screen view of ``pycnictl top``, made with the library textual; only this command on a terminal loads it.

Life: a timer has samples taken on a thread, one round at a time; a round that is answered becomes a ``Frame`` and the
table is filled anew, the row under the cursor kept. While paused nobody is asked. What is shown is the ``SHOWN`` first
rows of the order; all are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Input, Static, Tab, Tabs
from textual.worker import get_current_worker

from pycni.errors import PycniError
from pycni.traffic import views
from pycni.traffic.model import Sample
from pycni.traffic.rates import Frame, Rates
from pycni.traffic.views import BUSIEST, COLUMNS, Column, human

SHOWN = 500
VIEWS = ("pods", "services", "policies", "nodes")
_BRIGHT, _FAINT = "bold", "dim"


class TopApp(App[int]):
    """``sample`` gives a round of samples by node; it may block, and raise PycniError."""

    TITLE = "pycnictl top"
    CSS = """
    #head { height: auto; padding: 0 1; background: $boost; }
    #state { height: 1; padding: 0 1; color: $text-muted; }
    #trouble { height: auto; padding: 0 1; color: $error; display: none; }
    #trouble.shown { display: block; }
    #filter { display: none; height: 3; }
    #filter.shown { display: block; }
    DataTable { height: 1fr; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1,p", "view('pods')", "pods"),
        Binding("2,s", "view('services')", "services"),
        Binding("3,d", "view('policies')", "denied"),
        Binding("4,o", "view('nodes')", "nodes"),
        Binding("n", "next_node", "node"),
        Binding("less_than_sign,comma", "sort(-1)", "sort", key_display="< >"),
        Binding("greater_than_sign,full_stop", "sort(1)", "sort", show=False),
        Binding("r", "turn", "reverse"),
        Binding("a", "apart", "by node"),
        Binding("slash", "search", "filter", key_display="/"),
        Binding("space", "pause", "pause"),
        Binding("plus,equals_sign", "faster(0.5)", "faster", show=False),
        Binding("minus", "faster(2)", "slower", show=False),
        Binding("escape", "clear", "no filter", show=False),
        Binding("q,ctrl+c", "quit", "quit"),
    ]

    def __init__(
        self,
        sample: Callable[[], Mapping[str, Sample]],
        *,
        interval: float = 1.0,
        view: str = "pods",
        sort: str = "",
        ascending: bool = False,
        words: str = "",
        apart: bool = False,
        title: str = "",
    ) -> None:
        """``interval`` in seconds; ``sort``: a column's field, "" for the busiest first."""
        super().__init__()
        self.animation_level = "none"
        self._sample = sample
        self._interval = interval
        self._rates = Rates()
        self._view = view
        self._keys = dict.fromkeys(VIEWS, BUSIEST) | ({view: sort} if sort else {})
        self._ascending = dict.fromkeys(VIEWS, False) | {view: ascending}
        self._words = words
        self._apart = apart
        self._node = ""
        self._where = title
        self._paused = False
        self._busy = False
        self.frame: Frame | None = None
        """What is shown."""
        self._columns: tuple[Column, ...] = ()

    # --- parts ---------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """The screen from top to bottom."""
        yield Static(id="head")
        yield Tabs(*(Tab(name, id=name) for name in VIEWS), active=self._view)
        with Horizontal(id="state"):
            yield Static(id="words")
        yield Static(id="trouble")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Input(self._words, placeholder="words that names have; enter keeps, escape clears", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        self.query_one(DataTable).focus()
        self._show()
        self._timer = self.set_interval(self._interval, self._tick)
        self._tick()

    def _tick(self) -> None:
        if not self._paused and not self._busy:
            self._busy = True
            self._take()

    @work(thread=True, exit_on_error=True)
    def _take(self) -> None:
        worker, trouble, samples = get_current_worker(), "", dict[str, Sample]()
        try:
            samples = dict(self._sample())
        except PycniError as error:
            trouble = str(error)
        if not worker.is_cancelled:
            self.call_from_thread(self._taken, samples, trouble)

    def _taken(self, samples: Mapping[str, Sample], trouble: str) -> None:
        self._busy = False
        if samples:
            frame = self._rates.feed(samples)
            if frame is not None and not self._paused:
                self.frame = frame
        lines = [trouble] if trouble else []
        if self.frame is not None:
            lines += [f"{node.node}: {line}" for node in self.frame.nodes for line in node.troubles]
        found = self.query_one("#trouble", Static)
        found.update(Text("\n".join(lines)))
        found.set_class(bool(lines), "shown")
        self._show()

    # --- what is shown -------------------------------------------------------------------------------------------

    def _show(self) -> None:
        self.query_one("#head", Static).update(self._head())
        rows = self._rows()
        self.query_one("#words", Static).update(self._state(len(rows)))
        self._fill(rows)

    def _rows(self) -> list[Any]:
        if self.frame is None:
            return []
        rows = views.rows_of(self.frame, self._view, node=self._node, words=self._words, apart=self._apart)
        key, ascending = self._keys[self._view], self._ascending[self._view]
        return views.ordered(rows, self._view, key, ascending=ascending)

    def _head(self) -> Text:
        if self.frame is None:
            return Text(f"{self._where}  waiting for two samples ...", style=_FAINT)
        text = Text()
        nodes = [node for node in self.frame.nodes if not self._node or node.node == self._node]

        def add(title: str, value: str) -> None:
            text.append(f"{title} ", style=_FAINT)
            text.append(f"{value}   ", style=_BRIGHT)

        def total(field: str, kind: str = "rate") -> str:
            known = [value for node in nodes if (value := getattr(node, field)) is not None]
            return human(sum(known) if known else None, kind)

        add(self._where, self._node or (f"{len(nodes)} nodes" if len(nodes) > 1 else nodes[0].node))
        add("pods", total("pods", "count"))
        add("in", f"{total('bytes_in')}B/s {total('packets_in')} pkt/s")
        add("out", f"{total('bytes_out')}B/s {total('packets_out')} pkt/s")
        add("new", f"{total('new')}/s")
        add("active", total("active", "count"))
        add("drops", f"{total('drops')}/s")
        add("denied", f"{total('denied')}/s")
        limits = [node.tracked_limit for node in nodes if node.tracked_limit]
        add("tracked", f"{total('tracked', 'count')}{f' of {sum(limits)}' if limits else ''}")
        return text

    def _state(self, rows: int) -> Text:
        column = next((item for item in COLUMNS[self._view] if item.field == self._keys[self._view]), None)
        order = (
            f"{column.title.lower()}{' ascending' if self._ascending[self._view] else ''}" if column else ""
        )
        words = [
            f"sorted by {order or 'what is busiest'}",
            f"node {self._node}" if self._node else "all nodes",
            *([f"filter {self._words!r}"] if self._words else []),
            *(["services by node"] if self._apart and self._view == "services" else []),
            f"every {self._interval:g} s",
            f"{rows} rows" if rows <= SHOWN else f"{SHOWN} of {rows} rows",
            *(["PAUSED"] if self._paused else []),
        ]
        return Text("  ·  ".join(words))

    def _fill(self, rows: Sequence[Any]) -> None:
        table: DataTable[Text] = self.query_one(DataTable)
        columns = COLUMNS[self._view]
        if self._columns != columns:
            table.clear(columns=True)
            for column in columns:
                table.add_column(column.title, key=column.field)
            self._columns = columns
            names = ""
        else:
            names = self._under_cursor(table)
            table.clear()
        place = 0
        for index, row in enumerate(rows[:SHOWN]):
            key = " ".join(str(getattr(row, item.field)) for item in columns if item.kind == "name")
            key = f"{key} {getattr(row, 'interface', '')}"
            if key == names:
                place = index
            table.add_row(*(_cell(getattr(row, item.field), item) for item in columns), key=key)
        self._titles(table)
        if names and rows:
            table.move_cursor(row=place)

    @staticmethod
    def _under_cursor(table: DataTable[Text]) -> str:
        if not table.row_count:
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value or "")

    def _titles(self, table: DataTable[Text]) -> None:
        """The column the order goes by is marked."""
        key, up = self._keys[self._view], self._ascending[self._view]
        for column in table.ordered_columns:
            about = next(item for item in self._columns if item.field == column.key.value)
            mark = (" ▲" if up != (about.kind == "name") else " ▼") if about.field == key else ""
            column.label = Text(about.title + mark, justify="left" if about.kind == "name" else "right")

    # --- keys ----------------------------------------------------------------------------------------------------

    def action_view(self, view: str) -> None:
        """Another view."""
        self._view = view
        self.query_one(Tabs).active = view
        self._show()

    def on_tabs_tab_activated(self, event: Tabs.TabActivated) -> None:
        """A view was chosen, by key or mouse."""
        self.query_one(DataTable).focus()
        if event.tab.id != self._view:
            self._view = event.tab.id or self._view
            self._show()

    def action_next_node(self) -> None:
        """All nodes, then one after the other."""
        if self.frame is not None:
            names = ["", *sorted(node.node for node in self.frame.nodes)]
            at = names.index(self._node) if self._node in names else 0
            self._node = names[(at + 1) % len(names)]
            self._show()

    def action_sort(self, step: int) -> None:
        """By the next column, or the one before; beyond the ends by what is busiest."""
        keys = [BUSIEST, *(column.field for column in COLUMNS[self._view])]
        at = keys.index(self._keys[self._view])
        self._keys[self._view] = keys[(at + step) % len(keys)]
        self._show()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """A column's title was clicked: sort by it, or the other way round."""
        field = str(event.column_key.value)
        if self._keys[self._view] == field:
            self._ascending[self._view] = not self._ascending[self._view]
        self._keys[self._view] = field
        self._show()

    def action_turn(self) -> None:
        """The order the other way round."""
        self._ascending[self._view] = not self._ascending[self._view]
        self._show()

    def action_apart(self) -> None:
        """Services by node, or added up."""
        self._apart = not self._apart
        self._show()

    def action_pause(self) -> None:
        """Keep what is shown; nobody is asked meanwhile."""
        self._paused = not self._paused
        self._show()

    def action_faster(self, factor: float) -> None:
        """Another interval."""
        self._interval = min(60.0, max(0.25, self._interval * factor))
        self._timer.stop()
        self._timer = self.set_interval(self._interval, self._tick)
        self._show()

    def action_search(self) -> None:
        """Type a filter."""
        box = self.query_one("#filter", Input)
        box.add_class("shown")
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """The filter holds while it is typed."""
        self._words = event.value
        self._show()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Back to the table."""
        self._close_filter()

    def action_clear(self) -> None:
        """No filter."""
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("shown")
        self.query_one(DataTable).focus()


def _cell(value: Any, column: Column) -> Text:
    if column.kind == "name":
        return Text(str(value))
    style = _FAINT if not value else ""
    if (
        value
        and column.field in {"drops", "denied", "packets"}
        and column.title.startswith(("DROP", "DENIED"))
    ):
        style = "bold red"
    return Text(human(value, column.kind), style=style, justify="right")
