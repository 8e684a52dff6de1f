"""Which rungs are the frontier, and how the tables say it."""

from __future__ import annotations

from kvfold.pipeline.show.markdown import write_table
from kvfold.pipeline.show.table import Table
from kvfold.pipeline.studies.frontier.frontier_tables import frontier_tables, whole_frontier_table
from kvfold.pipeline.studies.frontier.rungs import Frontier
from tests.pipeline.studies.made_up_rungs import make_rung

LADDER = Frontier(
    text="a text",
    rungs=(
        make_rung("whole", 1 << 20, 0.0, 0.01),
        make_rung("beaten", 1 << 18, 0.2, 0.01),
        make_rung("good", 1 << 18, 0.1, 0.01),
    ),
)


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_the_frontier_is_what_no_other_rung_beats() -> None:
    ladder = (
        make_rung("whole", 800, 0.0),
        make_rung("good", 400, 0.1),
        make_rung("beaten", 400, 0.2),
        make_rung("tie", 400, 0.1),
        make_rung("worse and larger", 500, 0.3),
        make_rung("small", 100, 2.0),
    )
    best = [rung.recipe for rung in Frontier(text="", rungs=ladder).best]
    assert best == ["whole", "good", "tie", "small"]


def test_a_rung_has_its_bytes_in_one_table_and_its_cost_in_the_other() -> None:
    sizes, costs = frontier_tables(LADDER)
    assert sizes.columns == ("", "2,048 tokens", "smaller", "8,192 tokens", "smaller")
    assert texts(sizes)[2] == ["good", "256 KiB", "4.0 x", "256 KiB", "4.0 x"]
    assert texts(costs)[2] == ["good", "9.900 (9.890, 9.910)", "1.100 (1.090, 1.110)", "0.1 (0.09, 0.11)"]
    assert costs.title.startswith("Float fold; original's perplexity 9.00 (8.99, 9.01), 95% intervals;")
    assert "text: a text" in costs.title


def test_what_another_rung_beats_is_not_marked() -> None:
    for table in frontier_tables(LADDER):
        marked = [row[0].text for row in table.rows if all(cell.emphasis == "strong" for cell in row)]
        assert marked == ["whole", "good"]


def test_the_whole_table_marks_names_alone_and_says_how_it_came_about() -> None:
    lines = write_table(whole_frontier_table(LADDER)).splitlines()
    assert lines[0].startswith(
        "|  | KV at 2,048 tokens | smaller | KV at 8,192 tokens | smaller | perplexity |"
    )
    assert lines[2].startswith("| **whole** | 1 MiB | 1.0 x |")
    assert lines[3].startswith("| beaten | 256 KiB |")
    assert lines[-1].startswith("Float fold; ") and lines[-1].endswith("nearer to the original.")
