"""The rows that are kept of each round, on their way from the lanes to the row log.

The commit step has all lanes' rounds in order, and holds the lease: it alone writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from dataflows.row_choice import RowChoice
from dataflows.settings import recorded
from dataflows.state.row_log import RowLog, rows_folder

if TYPE_CHECKING:
    from dataflows.context import Context
    from dataflows.control.records import Control
    from dataflows.score import RoundOut

__all__ = ["KeptRows"]


class KeptRows:
    """Writes what the lanes have chosen, and who is kept whole.

    Parameters
    ----------
    context : of the flow
    choice : follows the choice of all lanes

    Raises
    ------
    StateError : the disk refuses it
    """

    def __init__(self, context: Context, choice: RowChoice) -> None:
        settings = context.settings
        round_ = context.manifest.round
        self._context, self._choice = context, choice
        choice.forget(round_, 0)
        self._log = RowLog(
            rows_folder(settings.state_dir),
            recorded(settings),
            round_,
            round(settings.rows_h * 3.6e9),
            settings.rows_bytes_max,
        )
        self._control: Control | None = None
        self._header: dict[str, Any] = {}

    @classmethod
    def opened(cls, context: Context) -> Self | None:
        """That of a flow, None where it keeps no rows."""
        choice = context.new_row_choice()
        return None if choice is None else cls(context, choice)

    def add(self, round_: int, outs: list[RoundOut]) -> None:
        """Take in a round."""
        events: dict[str, int] = {}
        for out in outs:
            if out.kept is not None:
                self._choice.take(out.lane, out.kept.whole, out.cut_time_us)
                for name, count in out.kept.events.items():
                    events[name] = events.get(name, 0) + count
        rows = (rows for out in outs if out.kept is not None for rows in out.kept.rows)
        labels = (label for out in outs for label in out.labels)
        header = self._header_of(outs[0].control)
        self._log.add(round_, outs[0].cut_time_us, header, events, rows, labels)

    def _header_of(self, control: Control) -> dict[str, Any]:
        """What holds for the rows of a round; plain data."""
        if control is not self._control:
            context, self._control = self._context, control
            seat = context.shelf.lineup(control)[0]
            self._header = {
                "bundle": seat.bundle,
                "rules": seat.scorer.voting.id,
                "catalog": context.catalog.version,
                "sample": context.settings.rows_share,
                "thresholds": [[*of, value] for of, value in sorted(control.thresholds.items())],
                "stages": {name: list(stage) for name, stage in sorted(control.stages.items())},
                "shifts": {name: list(shift) for name, shift in sorted(control.shifts.items())},
            }
        return self._header

    def save(self, round_: int) -> None:
        """End the block with a round whose manifest may be written."""
        self._log.flush()
        self._choice.save(round_)

    def sync(self) -> None:
        """Return once everything saved is on the disk."""
        self._log.sync()

    def forget_before(self, round_: int) -> None:
        """Remove what no restart from `round_` on needs."""
        self._choice.forget(2**63, round_)

    def close(self) -> None:
        """Let go of the files."""
        self._log.close()
