"""The system prompt that a chat template inserts by itself, where the conversation has none."""

from __future__ import annotations

from ggext.chat.template import ChatTemplate, TemplateError
from ggext.chat.transcript import Turn

_MARK = "ggext-system-prompt"


def inserted_system(template: ChatTemplate | None) -> str:
    """Its text, empty where the template inserts none or refuses a system prompt: what stands
    where the text of a given system prompt would."""
    if template is None:
        return ""
    question = Turn("user", "?")
    try:
        given = template.render([Turn("system", _MARK), question])
        without = template.render([question])
    except TemplateError:
        return ""
    before, mark, after = given.partition(_MARK)
    fits = len(without) >= len(before) + len(after)
    if not (mark and fits and without.startswith(before) and without.endswith(after)):
        return ""
    return without[len(before) : len(without) - len(after)].strip()
