"""What the host can do, and its GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.text import clean
from tui.model.tier import tier_lines
from tui.pages.scroll import ScrollPage


class DoctorPage(ScrollPage):
    """Feature, found or not, what that costs, how to get it."""

    name_words = "doctor"

    def __init__(self) -> None:
        super().__init__()
        self._features: Sequence[pb.Feature] | None = None

    async def load(self, until: float | None) -> None:
        self._features = await self.corral.source.features()

    def lines(self, width: int) -> Sequence[Text]:
        if self._features is None:
            return [Text(self.problem or "asking the daemon", "yellow" if self.problem else "dim")]
        lines = []
        # what is missing first: it is what somebody opens this page for
        for feature in sorted(self._features, key=lambda f: (f.found, f.name)):
            text = Text()
            text.append("✓ " if feature.found else "✗ ", "green" if feature.found else "bold red")
            text.append(f"{clean(feature.name):24} ", "bold")
            text.append(clean(feature.detail), "dim")
            lines.append(text)
            if not feature.found:
                lines += [Text(f"    {clean(words)}") for words in (feature.cost, feature.remedy) if words]
        return lines


class GpuPage(ScrollPage):
    name_words = "GPUs"

    def lines(self, width: int) -> Sequence[Text]:
        return tier_lines(self.board, width, self.board.at or self.corral.clock())
