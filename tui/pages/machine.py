"""What the host can do, and its GPUs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from rich.text import Text

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model import details
from tui.model.text import clean
from tui.pages.scroll import ScrollPage

NO_GPU: Final = "This daemon reports no GPU and no inference engine. To see them here:"
# what, and what has to be there
WANTED: Final = (
    ("devices", "NVIDIA's driver on this host (nvidia-smi works); restart agentd after it was installed"),
    ("engines", "llama.cpp, vLLM or SGLang, named in agentd's configuration where this version has a section for them"),
    ("check", "corral config check says whether a configuration is right, corral doctor what the host lacks"),
    ("sessions", "calls that declare where they belong: corral run --engine NAME --conversation ID -- COMMAND"),
)


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

    def bound(self) -> list[pb.Call]:
        """Calls that say which conversation on which engine they belong to."""
        return [call for call in self.board.calls.values() if call.intent.HasField("inference") or call.intent.gpu]

    def lines(self, width: int) -> Sequence[Text]:
        lines = [details.title("GPUs and inference engines"), Text(), Text(NO_GPU), Text()]
        for name, words in WANTED:
            first, *more = textwrap.wrap(words, max(20, width - 14))
            lines.append(details.fact(name, first))
            lines += [Text(f"{'':13}{words}") for words in more]
        calls = self.bound()
        if calls:
            lines += [Text(), details.title("calls that declare a GPU or an engine")]
            for call in calls:
                inference = call.intent.inference
                words = clean(f"{inference.engine} {inference.conversation}".strip()) or "GPU"
                lines.append(details.fact(clean(call.intent.tool or call.id)[:12], f"{words}   {clean(call.command)}"))
        return lines
