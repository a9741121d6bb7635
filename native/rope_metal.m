/* The host's part of the rotation on an Apple GPU; rope.metal is the device's.
 *
 * The kernels are compiled on first use and live as long as the program. Rows go through shared buffers in slabs, and
 * each call waits for its own commands: calls from several threads have buffers of their own. */
#import <Metal/Metal.h>

#include "metal.h"
#include "rope_metal.h"
/* const char ggext_metal_source[]: rope.metal, made by the build. */
#include "rope_metal_source.h"

/* Rows go through the device in slabs of about this many bytes. */
static const size_t SLAB_BYTES = (size_t)256 << 20;

/* What is made once and lives as long as the program. `why` is set where it could not be made. */
static struct {
    id<MTLDevice> device;
    id<MTLCommandQueue> queue;
    id<MTLComputePipelineState> pipelines[3]; /* by enum ggext_type */
    const char *why;
} metal;

/* Returns a copy of an error's words, which lives as long as the program, or `otherwise`. */
static const char *words_of(NSError *error, const char *otherwise)
{
    return error == nil ? otherwise : strdup(error.localizedDescription.UTF8String);
}

/* Compiles the kernels; sets metal.why where that fails. Called once, with a device and a queue. */
static void make_pipelines(void)
{
    NSArray<NSString *> *names = @[ @"rotate_f32", @"rotate_f16", @"rotate_bf16" ];
    MTLCompileOptions *options = [MTLCompileOptions new];
    options.fastMathEnabled = NO; /* rope_math.h says why */
    NSError *error = nil;
    NSString *source = [NSString stringWithUTF8String:ggext_metal_source];
    id<MTLLibrary> library = [metal.device newLibraryWithSource:source options:options error:&error];
    if (library == nil) {
        metal.why = words_of(error, "Metal could not compile the kernels");
        return;
    }
    for (NSUInteger i = 0; i < names.count; i++) {
        id<MTLFunction> function = [library newFunctionWithName:names[i]];
        metal.pipelines[i] = [metal.device newComputePipelineStateWithFunction:function error:&error];
        if (metal.pipelines[i] == nil) {
            metal.why = words_of(error, "Metal could not make a pipeline");
            return;
        }
    }
}

/* Makes what lives as long as the program, on the first call, from whichever thread. */
static void start(void)
{
    static dispatch_once_t once;
    dispatch_once(&once, ^{
      @autoreleasepool {
          metal.device = MTLCreateSystemDefaultDevice();
          metal.queue = [metal.device newCommandQueue];
          if (metal.queue == nil)
              metal.why = "macOS offers no Metal device";
          else
              make_pipelines();
      }
    });
}

int ggext_metal_devices(const char **reason)
{
    start();
    *reason = metal.why;
    return metal.why == NULL ? 1 : 0;
}

/* Returns a buffer that host and device share, or nil; Metal has none of 0 bytes. */
static id<MTLBuffer> new_buffer(size_t bytes)
{
    return [metal.device newBufferWithLength:bytes > 0 ? bytes : 1 options:MTLResourceStorageModeShared];
}

/* Fills the fractions of a table; no frequencies are no rotation. */
static void fill_fractions(id<MTLBuffer> buffer, const struct ggext_table *table, size_t n_pairs)
{
    uint64_t *fractions = buffer.contents;
    for (size_t i = 0; i < n_pairs; i++)
        fractions[i] = table->inv_freq == NULL ? 0 : ggext_fraction_of_turn(table->inv_freq[i]);
}

/* Fills the positions of rows [begin, begin + n); no frequencies are position 0. */
static void fill_positions(id<MTLBuffer> buffer, const struct ggext_table *table, size_t begin, size_t n)
{
    int64_t *positions = buffer.contents;
    for (size_t i = 0; i < n; i++)
        positions[i] = table->inv_freq == NULL ? 0 : ggext_position_at(table->positions, begin + i);
}

/* Turns the rows that are in the buffers; returns NULL or what went wrong. */
static const char *run(enum ggext_type type, id<MTLBuffer> const __strong *buffers, MTLSize grid)
{
    id<MTLCommandBuffer> commands = [metal.queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    id<MTLComputePipelineState> pipeline = metal.pipelines[type];
    [encoder setComputePipelineState:pipeline];
    for (NSUInteger i = 0; i < GGEXT_METAL_ARGUMENTS; i++)
        [encoder setBuffer:buffers[i] offset:0 atIndex:i];
    [encoder dispatchThreads:grid threadsPerThreadgroup:MTLSizeMake(pipeline.threadExecutionWidth, 1, 1)];
    [encoder endEncoding];
    [commands commit];
    [commands waitUntilCompleted];
    return commands.error == nil ? NULL : words_of(commands.error, "Metal could not run the kernel");
}

/* Rotates rows of the host, a slab at a time; returns NULL or what went wrong. */
static const char *rotate(const struct ggext_rope *rope, struct ggext_shape shape, const char *rows, char *out)
{
    const size_t row_bytes = shape.n_heads * shape.head_dim * ggext_type_size(shape.type);
    const size_t most = SLAB_BYTES / (row_bytes > 0 ? row_bytes : 1) + 1;
    const size_t slab = shape.n < most ? shape.n : most;
    const size_t table_bytes[2] = {rope->n_pairs * sizeof(uint64_t), slab * sizeof(int64_t)};
    id<MTLBuffer> buffers[GGEXT_METAL_ARGUMENTS] = {
        new_buffer(slab * row_bytes),   new_buffer(sizeof(struct ggext_metal_rope)),
        new_buffer(table_bytes[0]),     new_buffer(table_bytes[1]),
        new_buffer(table_bytes[0]),     new_buffer(table_bytes[1]),
    };
    for (size_t i = 0; i < GGEXT_METAL_ARGUMENTS; i++)
        if (buffers[i] == nil)
            return "Metal has not enough memory";

    const float gain = (float)((rope->to.inv_freq ? rope->to.gain : 1.0) / (rope->from.inv_freq ? rope->from.gain : 1.0));
    *(struct ggext_metal_rope *)buffers[GGEXT_METAL_ROPE].contents =
        (struct ggext_metal_rope){(unsigned)rope->n_pairs, (unsigned)shape.n_heads, (unsigned)shape.head_dim,
                                  (unsigned)rope->layout, gain};
    fill_fractions(buffers[GGEXT_METAL_TO_FRACTIONS], &rope->to, rope->n_pairs);
    fill_fractions(buffers[GGEXT_METAL_FROM_FRACTIONS], &rope->from, rope->n_pairs);
    for (size_t begin = 0; begin < shape.n; begin += slab) {
        const size_t n = shape.n - begin < slab ? shape.n - begin : slab;
        fill_positions(buffers[GGEXT_METAL_TO_POSITIONS], &rope->to, begin, n);
        fill_positions(buffers[GGEXT_METAL_FROM_POSITIONS], &rope->from, begin, n);
        memcpy(buffers[GGEXT_METAL_ROWS].contents, rows + begin * row_bytes, n * row_bytes);
        const char *failure = run(shape.type, buffers, MTLSizeMake(rope->n_pairs, shape.n_heads, n));
        if (failure != NULL)
            return failure;
        memcpy(out + begin * row_bytes, buffers[GGEXT_METAL_ROWS].contents, n * row_bytes);
    }
    return NULL;
}

const char *ggext_metal_rotate(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows, void *out,
                               size_t threads)
{
    (void)threads;
    start();
    if (metal.why != NULL)
        return metal.why;
    if (shape.n_heads > UINT32_MAX || shape.head_dim > UINT32_MAX)
        return "a row has too many values for Metal";
    if (shape.n_heads == 0 || rope->n_pairs == 0) {
        memmove(out, rows, shape.n * shape.n_heads * shape.head_dim * ggext_type_size(shape.type));
        return NULL;
    }
    @autoreleasepool {
        return rotate(rope, shape, rows, out);
    }
}
