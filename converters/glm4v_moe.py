"""GLM-4.5V and 4.6V, which see too: what concerns text is GLM-4.5 Air, its pairs in sections."""

from __future__ import annotations

from ggext.converters.glm4_moe import Glm4Moe
from ggext.converters.glm4v import WithSections


class Glm4vMoe(WithSections, Glm4Moe):
    defaults = Glm4Moe.defaults | {"attention_bias": True}

    def check(self) -> None:
        super().check()
        self.normed = False  # whatever use_qk_norm says: the class does not read it


FAMILY = Glm4vMoe
