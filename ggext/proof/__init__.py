"""One level of ``ggext verify`` a module; ``ggext.verify`` puts them together."""
