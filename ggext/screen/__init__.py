"""Screens: where a chat is shown and typed. Nothing else in ggext draws."""
