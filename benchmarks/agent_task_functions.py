"""Functions of a user, as `glm4 chat --tools agent_task_functions.py` takes them; for agent_tasks.py."""

from __future__ import annotations

from typing import Literal

from glm4 import tool

SHOPPING_LIST: dict[str, float] = {}
WEATHER = {"lisbon": (18.5, "clear"), "oslo": (-4.0, "snow"), "nairobi": (24.0, "cloudy")}

Unit = Literal["kilometer", "mile", "meter", "foot", "kilogram", "pound", "celsius", "fahrenheit"]
_FACTORS: dict[str, tuple[str, float]] = {
    "kilometer": ("length", 1000.0), "mile": ("length", 1609.344), "meter": ("length", 1.0), "foot": ("length", 0.3048),
    "kilogram": ("mass", 1.0), "pound": ("mass", 0.45359237),
}  # fmt: skip


@tool
def current_weather(city: str) -> dict[str, float | str]:
    """The weather in a city right now.

    Args:
        city: the name of the city.
    """
    found = WEATHER.get(city.partition(",")[0].strip().lower())
    if found is None:
        raise ValueError(f"there is no weather station in {city}; there are Lisbon, Oslo and Nairobi")
    return {"city": city, "temperature_celsius": found[0], "sky": found[1]}


@tool
def convert_unit(value: float, from_unit: Unit, to_unit: Unit) -> float:
    """Convert a value from one unit to another.

    Args:
        value: in from_unit.
    """
    if (from_unit, to_unit) == ("celsius", "fahrenheit"):
        return round(value * 9 / 5 + 32, 3)
    if (from_unit, to_unit) == ("fahrenheit", "celsius"):
        return round((value - 32) * 5 / 9, 3)
    before, after = _FACTORS.get(from_unit), _FACTORS.get(to_unit)
    if before is None or after is None or before[0] != after[0]:
        raise ValueError(f"{from_unit} cannot be converted to {to_unit}")
    return round(value * before[1] / after[1], 3)


@tool
def add_to_shopping_list(item: str, amount: float) -> str:
    """Add an item to the user's shopping list.

    Args:
        item: what to buy.
        amount: how much or how many.
    """
    SHOPPING_LIST[item] = SHOPPING_LIST.get(item, 0.0) + amount
    return f"Added: {amount:g} {item}. The list now has: " + ", ".join(
        f"{n:g} {name}" for name, n in SHOPPING_LIST.items()
    )


@tool
def show_shopping_list() -> dict[str, float]:
    """What is on the user's shopping list."""
    return SHOPPING_LIST
