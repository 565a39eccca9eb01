"""An MCP server over stdio, for agent_tasks.py: the catalog of a small library."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("library", version="1")
BOOKS = {
    "the silent harbor": {"author": "Ines Moreau", "shelf": 214, "copies": 3},
    "a field guide to mosses": {"author": "Tom Okafor", "shelf": 58, "copies": 1},
    "bread and salt": {"author": "Lena Brandt", "shelf": 131, "copies": 2},
}


@server.tool()
def find_book(title: str) -> dict[str, str | int]:
    """Find a book of the library by its title: its author, shelf and number of copies."""
    found = BOOKS.get(title.strip().lower())
    if found is None:
        raise ValueError(f"the library has no book with the title {title}")
    return {"title": title, **found}  # type: ignore[dict-item]


@server.tool()
def opening_hours(day: str) -> str:
    """When the library is open on a day of the week."""
    return "closed" if day.strip().lower() == "sunday" else "9:00 to 18:00"


if __name__ == "__main__":
    server.run("stdio")
