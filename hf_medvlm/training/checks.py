"""`Checks`: the lines of a preflight, each ok, warning or STOP."""

from __future__ import annotations

from dataclasses import dataclass, field

OK, WARNING, STOP = "ok", "warning", "STOP"


@dataclass
class Checks:
    """(state, what was looked at, what was found and the way out), in the order they were looked at."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, state: str, what: str, result: str) -> None:
        self.lines.append((state, what, result))

    def text(self) -> str:
        """The lines as a table."""
        return "\n".join(f"{state:>7}  {what:<14} {result}" for state, what, result in self.lines)

    def stop_if_needed(self) -> None:
        """Raise `ValueError` with every line that must stop the run."""
        stops = [f"{what}: {result}" for state, what, result in self.lines if state == STOP]
        if stops:
            raise ValueError("the preflight stops the run: " + "; ".join(stops))
