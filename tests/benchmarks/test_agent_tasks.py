"""The tasks of agent_tasks.py: each checker takes a right outcome and refuses wrong ones. No model is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import agent_task_web
from agent_task_set import FILES, Outcome, Task, numbers, orders, readings, report, revenue, tasks
from agent_task_web import local_web
from glm4.agent.toolbox import TOOLS
from glm4.agent.tools.browser.search import open_search
from glm4.documents.loading import load_document
from glm4.multimodal.fetch import Fetcher, FetchPolicy

PNG = b"\x89PNG\r\n\x1a\n"
BEST = max(revenue(), key=lambda region: revenue()[region])
MANY = sum(row[2] == "north" and row[3] > 10 for row in orders())
MEAN = sum(temperature for _, temperature in readings()) / len(readings())
# Of each task: outcomes to accept, and outcomes to refuse.
OUTCOMES: dict[str, tuple[list[Outcome], list[Outcome]]] = {
    "sum": (
        [Outcome("It is 71071."), Outcome("$71{,}071$"), Outcome("71,071 in all.")],
        [Outcome("It is 710710."), Outcome("It is 71070."), Outcome("It is 171,071."), Outcome(""), Outcome("71.071")],
    ),
    "primes": ([Outcome("**669** primes")], [Outcome("668"), Outcome("6690"), Outcome("", calls=[("python", "669")])]),
    "days": ([Outcome("963 days")], [Outcome("962 days"), Outcome("from 14 March 2024 to 2 November 2026")]),
    "deviation": ([Outcome("3.74"), Outcome("3.7416573867739413")], [Outcome("3.50"), Outcome("-3.74")]),
    "interest": ([Outcome("$15,210.31"), Outcome("15210")], [Outcome("$14,200.00"), Outcome("15,110.31")]),
    "digits": ([Outcome("The sum is 256.")], [Outcome("2565"), Outcome("1.256"), Outcome("2 to the 200")]),
    "csv mean": ([Outcome(f"{MEAN:.1f} degrees"), Outcome(str(MEAN))], [Outcome(f"{MEAN + 1:.1f}"), Outcome("-")]),
    "csv filter": ([Outcome(f"{MANY} orders")], [Outcome(f"{MANY + 1}"), Outcome("more than 10")]),
    "csv group": (
        [Outcome(f"{BEST.title()}: {revenue()[BEST]:,.2f}")],
        [Outcome(BEST), Outcome(f"{revenue()[BEST]:.2f}"), Outcome(f"north, south, east, west: {revenue()[BEST]:.2f}")],
    ),
    "plot": (
        [
            Outcome("", [("figure-1.png", "Squares; x: n", PNG)]),
            Outcome("", [("a.png", "", PNG)], [("python", '{"code": "plt.title(\'Squares\')"}')]),
        ],
        [
            Outcome("Here is the plot: Squares"),
            Outcome("Squares", [("figure-1.png", "Cubes", PNG)]),
            Outcome("Squares", [("squares.txt", "Squares", b"text")]),
            Outcome("Squares", [("a.png", "", PNG)], [("python", "plt.plot(squares)")]),
        ],
    ),
    "web lighthouse": (
        [Outcome("It is 43 meters tall【7†source】."), Outcome("43 m")],
        [Outcome("29 meters【43†source】"), Outcome("143 meters"), Outcome(" ".join(map(str, range(30, 50))))],
    ),
    "web bridge": ([Outcome("In 1931.")], [Outcome("In 1924."), Outcome("In 1958【7†source】."), Outcome("19310")]),
    "web recipe": ([Outcome("350 g"), Outcome("350.0")], [Outcome("500 grams"), Outcome("3500"), Outcome("35")]),
    "weather": ([Outcome("18.5 °C"), Outcome("18.5°C, clear")], [Outcome("-18.5"), Outcome("185"), Outcome("18")]),
    "convert": ([Outcome("42.16"), Outcome("about 42.2 km")], [Outcome("16.28"), Outcome("42"), Outcome("26.2 miles")]),
    "two functions": ([Outcome("65.3 °F (18.5 °C)")], [Outcome("18.5 °F"), Outcome("65"), Outcome("653")]),
    "shopping list": (
        [Outcome("", shopping_list={"eggs": 6, "milk": 2}), Outcome("", shopping_list={"Egg": 6, "liters of milk": 2})],
        [
            Outcome("6 eggs and 2 liters of milk are on it."),
            Outcome("", shopping_list={"eggs": 6}),
            Outcome("", shopping_list={"eggs": 12, "milk": 2}),
            Outcome("", shopping_list={"eggs": 6, "milk": 2, "bread": 1}),
        ],
    ),
    "mcp": ([Outcome("Shelf 214.")], [Outcome("Shelf 58"), Outcome("2.14"), Outcome("Shelf A214")]),
    "handbook": ([Outcome("21 days【9†source】")], [Outcome("28 days【21†source】"), Outcome("30 days")]),
    "report": ([Outcome("Harrow had 37 turbines.")], [Outcome("It had 12 turbines."), Outcome("370")]),
}  # fmt: skip


def test_there_are_twenty_tasks() -> None:
    assert len(tasks()) == 20
    assert {task.name for task in tasks()} == OUTCOMES.keys()
    for task in tasks():
        assert set(task.tools) <= {*TOOLS, "functions", "mcp:library"}
        assert set(task.files) <= FILES.keys()


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.name)
def test_a_checker_takes_right_outcomes_and_refuses_wrong_ones(task: Task) -> None:
    right, wrong = OUTCOMES[task.name]
    assert [outcome for outcome in right if not task.check(outcome)] == []
    assert [outcome for outcome in wrong if task.check(outcome)] == []


def test_a_question_does_not_answer_itself() -> None:
    for task in tasks():
        assert not task.check(Outcome(task.question)), task.name


def test_numbers_of_an_answer() -> None:
    assert numbers("1,234.5 and -7, then 12.") == [1234.5, -7.0, 12.0]
    assert numbers("in v2, 3x and 5%【7†source】") == [3.0, 5.0]
    assert numbers("10-20") == [10.0, 20.0]


def test_documents_have_the_facts_that_are_asked_for() -> None:
    assert load_document(report(), "report.docx", sandboxed=False).text.count("Harrow had 37 turbines") == 1
    assert FILES["handbook.md"]().decode().count("at least 21 days before") == 1


def test_the_web_is_found_by_its_engine_and_read_by_a_fetcher() -> None:
    with local_web() as port:
        results = open_search(f"searxng:http://127.0.0.1:{port}", None).search("Ellery lighthouse height", None, 7)
        assert results[0].title == "Lighthouse of Port Ellery"
        assert not any("43" in result.snippet for result in results)
        policy = FetchPolicy(private_hosts=(agent_task_web.HOST,), ports=(port,))
        page = Fetcher(policy).fetch(results[0].url, kinds=("text/html",), where="test")
        assert b"43 meters" in page.data
