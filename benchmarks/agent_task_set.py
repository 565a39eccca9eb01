"""Twenty small tasks for an agent, and how their answers are checked; for agent_tasks.py.

A checker looks for facts, never for words: a number in the final answer, a file that came out, what functions did.
"""

from __future__ import annotations

import csv
import io
import random
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache

_NUMBER = re.compile(r"(?<![\w.,])[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?![\d])")
_MARK = re.compile(r"【[^】]*】")
_MOST_NUMBERS = 12  # an answer that quotes everything it has read does not answer


@dataclass(frozen=True)
class Outcome:
    """What a turn came to.

    Attributes:
        answer: the text of its last message.
        files: that tools made: name, description, content.
        calls: of the turn, as written: function, arguments.
        shopping_list: of the functions, afterwards.
    """

    answer: str
    files: Sequence[tuple[str, str, bytes]] = ()
    calls: Sequence[tuple[str, str]] = ()
    shopping_list: Mapping[str, float] = field(default_factory=dict)


Checker = Callable[[Outcome], bool]


@dataclass(frozen=True)
class Task:
    """A question.

    Attributes:
        tools: names for `open_tools`; `functions` is agent_task_functions.py.
        files: names of files that the user sends.
    """

    name: str
    question: str
    tools: tuple[str, ...]
    check: Checker
    files: tuple[str, ...] = ()


def numbers(text: str) -> list[float]:
    """The numbers of a text; marks of citations are none."""
    plain = _MARK.sub("", text).replace("{,}", ",").replace("\\,", "")
    return [float(found.replace(",", "").replace("−", "-")) for found in _NUMBER.findall(plain)]


def says(expected: float, tolerance: float = 0.0) -> Checker:
    """The answer has this number, and not many others."""

    def check(outcome: Outcome) -> bool:
        found = numbers(outcome.answer)
        return len(set(found)) <= _MOST_NUMBERS and any(abs(one - expected) <= tolerance + 1e-9 for one in found)

    return check


def says_name(name: str) -> Checker:
    """The answer has this name, and none of the others that were to choose from."""

    def check(outcome: Outcome) -> bool:
        named = {region for region in REGIONS if re.search(rf"\b{region}\b", outcome.answer, re.IGNORECASE)}
        return named == {name}

    return check


def plotted(title: str) -> Checker:
    """A picture came out, and the title is in it."""

    def check(outcome: Outcome) -> bool:
        pictures = [alt for _, alt, data in outcome.files if data.startswith(b"\x89PNG\r\n\x1a\n")]
        # A picture that code saved itself has no description; then its code tells.
        code = "".join(arguments for _, arguments in outcome.calls)
        written = re.search(rf"title\([^)]*{re.escape(title)}", code) is not None
        return any(title in alt or (not alt and written) for alt in pictures)

    return check


def bought(**items: float) -> Checker:
    """The shopping list has exactly this, by a word of each item's name."""

    def check(outcome: Outcome) -> bool:
        left = {name.lower(): amount for name, amount in outcome.shopping_list.items()}
        for word, amount in items.items():
            name = next((name for name in left if word in name), None)
            if name is None or left.pop(name) != amount:
                return False
        return not left

    return check


def both(*checkers: Checker) -> Checker:
    """All of them."""
    return lambda outcome: all(check(outcome) for check in checkers)


REGIONS = ("north", "south", "east", "west")


@cache
def orders() -> list[tuple[int, str, str, int, float]]:
    """Of a shop: number, date, region, quantity, price."""
    draw = random.Random(7)
    return [
        (
            1001 + i,
            date(2025, draw.randint(1, 12), draw.randint(1, 28)).isoformat(),
            draw.choices(REGIONS, (4, 3, 5, 2))[0],
            draw.randint(1, 20),
            round(draw.uniform(3, 90), 2),
        )
        for i in range(600)
    ]


@cache
def readings() -> list[tuple[int, float]]:
    """Of a sensor: hour, temperature."""
    draw = random.Random(8)
    return [(hour, round(15 + draw.uniform(-6, 6), 1)) for hour in range(40)]


def revenue() -> dict[str, float]:
    """Of each region of `orders`."""
    return {
        region: sum(quantity * price for _, _, at, quantity, price in orders() if at == region) for region in REGIONS
    }


def _csv(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return out.getvalue().encode()


_TOPICS = (
    "Working hours", "Sick leave", "Business trips", "Expenses", "Training", "Equipment", "Annual leave",
    "Visitors", "Fire safety", "Parking", "Canteen", "Data protection", "Remote work", "Recycling", "First aid",
)  # fmt: skip
_SENTENCES = (
    "The office manager keeps the forms for {topic} and answers questions about them.",
    "Rules on {topic} are reviewed every year by the staff council and the management together.",
    "Whoever is new learns about {topic} in the first week, from a colleague of the same team.",
    "Exceptions concerning {topic} need the consent of the head of department in writing.",
    "Suggestions about {topic} are welcome and can be left in the box beside the entrance.",
    "Please treat what you hear about others in matters of {topic} as confidential.",
    "The intranet has a page about {topic} with the forms, the names of those in charge and frequent questions.",
    "Complaints about {topic} go to the staff council first, which talks to everybody concerned.",
)
_FACTS = {
    "Annual leave": "Annual leave must be requested at least 21 days before its first day. There are 28 days a year.",
    "Business trips": "Hotels may cost up to 140 euros a night; tickets are booked by the travel office.",
    "Parking": "There are 64 parking spaces; a permit costs 15 euros a month.",
    "Expenses": "Receipts are handed in within 30 days, and money is paid back with the next salary.",
}


def handbook() -> bytes:
    """A text of some 25,000 characters: too long for the prompt."""
    draw = random.Random(9)
    sections = ["# Staff handbook of Tellmann Instruments"]
    for number, topic in enumerate(_TOPICS, 1):
        filler = [" ".join(s.format(topic=topic.lower()) for s in draw.sample(_SENTENCES, 6)) for _ in range(3)]
        if topic in _FACTS:
            filler.insert(1, _FACTS[topic])
        sections.append(f"## {number}. {topic}\n\n" + "\n\n".join(filler))
    return "\n\n".join(sections).encode()


_SITES = ("Alder", "Birch", "Cray", "Dunmore", "Eskdale", "Fenwick", "Harrow", "Inver", "Keld", "Lorne", "Moss", "Nore")


def report() -> bytes:
    """A Word document about wind farms, too long for the prompt."""
    import docx

    draw = random.Random(10)
    document = docx.Document()
    document.add_heading("Annual report 2025", 0)
    for site in _SITES:
        turbines = 37 if site == "Harrow" else draw.choice((12, 18, 24, 29, 41, 52))
        document.add_heading(f"The {site} site", 1)
        document.add_paragraph(
            f"At the end of the year, {site} had {turbines} turbines and {draw.randint(6, 30)} employees."
            f" It produced {draw.randint(90, 400)} gigawatt hours."
        )
        for _ in range(3):
            topic = f"maintenance at {site}"
            document.add_paragraph(" ".join(s.format(topic=topic) for s in draw.sample(_SENTENCES, 7)))
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "orders.csv": lambda: _csv(("order", "date", "region", "quantity", "price"), orders()),
    "readings.csv": lambda: _csv(("hour", "temperature"), readings()),
    "handbook.md": handbook,
    "report.docx": report,
}


@cache
def tasks() -> tuple[Task, ...]:
    """All of them."""
    python, web, own, files = ("python",), ("browser",), ("functions",), ("files",)
    sample = (12, 15, 11, 18, 20, 9, 14, 17)
    many = sum(1 for _, _, region, quantity, _ in orders() if region == "north" and quantity > 10)
    best = max(revenue(), key=lambda region: revenue()[region])
    mean = statistics.fmean(temperature for _, temperature in readings())
    return (
        Task("sum", "What is the sum of all multiples of 7 between 1 and 1000?", python, says(sum(range(7, 1001, 7)))),
        Task("primes", "How many prime numbers are there below 5000?", python, says(669)),
        Task(
            "days",
            "How many days are there from 14 March 2024 to 2 November 2026?",
            python,
            says((date(2026, 11, 2) - date(2024, 3, 14)).days),
        ),
        Task(
            "deviation",
            f"What is the sample standard deviation of {', '.join(map(str, sample))}? Give two decimals.",
            python,
            says(statistics.stdev(sample), 0.005),
        ),
        Task(
            "interest",
            "I invest 10,000 dollars at 3.5 % per year, compounded monthly. How much is it after 12 years?",
            python,
            says(10_000 * (1 + 0.035 / 12) ** 144, 0.5),
        ),
        Task(
            "digits",
            "What is the sum of the digits of 2 to the power of 200?",
            python,
            says(sum(map(int, str(2**200)))),
        ),
        Task("csv mean", "What is the mean temperature in this file?", python, says(mean, 0.051), ("readings.csv",)),
        Task(
            "csv filter",
            "How many orders in this file are from the region north and have a quantity of more than 10?",
            python,
            says(many),
            ("orders.csv",),
        ),
        Task(
            "csv group",
            "Which region in this file has the highest total of quantity times price, and what is that total?",
            python,
            both(says(revenue()[best], 1.0), says_name(best)),
            ("orders.csv",),
        ),
        Task(
            "plot",
            "Draw a line plot of the squares of the numbers from 1 to 10, with the title 'Squares'.",
            python,
            plotted("Squares"),
        ),
        Task("web lighthouse", "Look on the web: how tall is the lighthouse of Port Ellery?", web, says(43)),
        Task("web bridge", "Look on the web: in which year was the Karlsen Bridge opened?", web, says(1931)),
        Task(
            "web recipe",
            "Look on the web: how many grams of wheat flour does the recipe for Brennan's oat bread need?",
            web,
            says(350),
        ),
        Task("weather", "How warm is it in Lisbon right now?", own, says(18.5)),
        Task("convert", "How many kilometers are 26.2 miles?", own, says(42.165, 0.07)),
        Task("two functions", "How warm is it in Lisbon right now, in degrees Fahrenheit?", own, says(65.3, 0.05)),
        Task(
            "shopping list",
            "Please put 6 eggs and 2 liters of milk on my shopping list.",
            own,
            bought(egg=6.0, milk=2.0),
        ),
        Task("mcp", "On which shelf of the library is the book The Silent Harbor?", ("mcp:library",), says(214)),
        Task(
            "handbook",
            "How many days before its first day must annual leave be requested?",
            files,
            says(21),
            ("handbook.md",),
        ),
        Task(
            "report",
            "How many turbines did the Harrow site have at the end of the year?",
            files,
            says(37),
            ("report.docx",),
        ),
    )
