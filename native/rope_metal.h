/* What the host and the device say to each other about a rotation on Apple's GPUs: C and Metal both read this. */
#ifndef GGEXT_ROPE_METAL_H
#define GGEXT_ROPE_METAL_H

/* All rows of a call have these in common; layout is an enum ggext_layout. */
struct ggext_metal_rope {
    unsigned n_pairs;
    unsigned n_heads;
    unsigned head_dim;
    unsigned layout;
    float gain;
};

/* Where the kernels find their arguments. Rows are turned in place. A table is the fraction of a turn that a token is
 * (ulong, one a pair) and positions (long, one a row); no rotation is fractions of 0. */
enum ggext_metal_argument {
    GGEXT_METAL_ROWS,
    GGEXT_METAL_ROPE,
    GGEXT_METAL_TO_FRACTIONS,
    GGEXT_METAL_TO_POSITIONS,
    GGEXT_METAL_FROM_FRACTIONS,
    GGEXT_METAL_FROM_POSITIONS,
    GGEXT_METAL_ARGUMENTS
};

#endif
