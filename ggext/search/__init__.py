"""A RoPE table that fits the model better than YaRN's at its defaults, or the answer that none was
found."""

from ggext.search.options import SearchOptions
from ggext.search.result import SearchResult
from ggext.search.run import Search, search

__all__ = ["Search", "SearchOptions", "SearchResult", "search"]
