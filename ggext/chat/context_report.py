"""What /context says: which tokens the context holds, in counts that add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ggext.chat.conversation import with_documents
from ggext.chat.inserted import inserted_system
from ggext.chat.prompt import without

if TYPE_CHECKING:
    from ggext.chat.loop import Chat


def context_report(chat: Chat) -> Iterator[str]:
    """Lines. Raises TemplateError."""
    conversation = chat.conversation
    room = chat.room
    used = conversation.used
    allocated = room.allocated
    yield (
        f"{used:,} of {allocated:,} tokens are used, {max(allocated - used, 0):,} are free; the "
        f"file is made for {room.made_for:,}, the model was trained on {room.trained:,}"
    )
    if used:
        yield f"used: {_shares(chat, used)}"
    if chat.documents:
        tokens = conversation.prompts.count(with_documents(chat.waiting, ""))
        names = ", ".join(one.name for one in chat.documents)
        yield f"waiting for the next turn: {tokens:,} of {names}"
    if conversation.dropped_turns:
        yield f"left the context: the {conversation.dropped_turns:,} oldest turns"
    if room.reserved:
        window = allocated - room.reserved
        yield (
            f"{room.when_full} keeps {room.reserved:,} tokens of the context for what it brings "
            f"back, and the latest text has {window:,}"
        )
    if room.cache is not None:
        size = room.cache(allocated)
        each = size / allocated
        yield (
            f"KV cache: {used * each / 2**20:,.1f} of {size / 2**20:,.1f} MiB, "
            f"{each:,.0f} bytes a token"
        )
    if room.computes:
        yield f"computed with {room.computes}"


def _shares(chat: Chat, used: int) -> str:
    """The used tokens by what they are; the template's are the rest."""
    conversation = chat.conversation
    count = conversation.prompts.count
    turns = without(conversation.turns, conversation.dropped_turns)
    roles = (
        ("system prompt", "system"),
        ("questions", "user"),
        ("answers", "assistant"),
    )
    shares = {
        name: sum(count(turn.content) for turn in turns if turn.role == role)
        for name, role in roles
    }
    rest = used - sum(shares.values())
    gone = conversation.engine.ever_dropped
    if gone and rest < 0:  # a policy has dropped tokens of any of them
        return f"what {chat.room.when_full} keeps of the chat; {gone:,} of the oldest tokens left"
    inserted = inserted_system(conversation.prompts.template)
    own = count(inserted) if inserted and not shares["system prompt"] else 0
    shares |= {"the template's own system prompt": own, "template": rest - own}
    return ", ".join(f"{name} {tokens:,}" for name, tokens in shares.items() if tokens)
