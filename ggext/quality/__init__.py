"""How far a GGUF file really reaches: likelihoods, needles, statistics, and the report on them."""
