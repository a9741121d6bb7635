"""llama.cpp's limits and the numbers of ggml's types."""

from __future__ import annotations

#: LLAMA_MAX_LAYERS
MAX_LAYERS = 512
#: LLAMA_MAX_EXPERTS
MAX_EXPERTS = 1024

#: ggml's numbers of the types whose elements stand alone → bytes of one element.
ELEMENT_BYTES = {0: 4, 1: 2, 30: 2}
F32, F16, I32, BF16 = 0, 1, 26, 30
#: Part of the names of the one kind of tensor that holds integers: the experts of each token.
LOOKUP = "tid2eid"
NVFP4 = 40
#: ggml's numbers of the types that a matrix may have: those with a dot product on the CPU
#: (``type_traits_cpu``). The others are of integers, or of what a multiplication makes for itself:
#: a weight of type Q8_1 is a call of a null pointer.
MATRIX_TYPES = frozenset(
    {
        *(F32, F16, BF16),
        *(2, 3, 6, 7, 8),  # Q4_0 to Q8_0
        *range(10, 15),  # Q2_K to Q6_K
        *range(16, 24),  # IQ2_XXS to IQ4_XS
        *(
            29,
            34,
            35,
            39,
            NVFP4,
            41,
            42,
        ),  # IQ1_M, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0
    }
)
