"""Transcripts of chats as tests write them."""

from __future__ import annotations


def transcript_of(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())
