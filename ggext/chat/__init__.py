"""Templates, turns, transcripts and the chat loop. Nothing here draws."""
