"""OLMo 3: OLMo 2 with windows in three of four layers, which no scaling concerns."""

from __future__ import annotations

from typing import Any

from ggext.converters.olmo2 import Olmo2


class Olmo3(Olmo2):
    defaults = Olmo2.defaults | {"sliding_window": 4096}

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | self.sliding_window(4)


FAMILY = Olmo3
