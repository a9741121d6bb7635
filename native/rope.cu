/* Rotation on a CUDA device, with the bits of rope.c.
 *
 * One kernel, rotate_rows, for each type, layout and width of a group of pairs. A block of threads computes the turns of
 * a row once, in shared memory, and applies them to all heads. Host rows go through the device in slabs; every function
 * of the host returns the first cudaError_t that is not cudaSuccess, and device memory is given back by destructors. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* One text for both: the structs' helpers on the host, the mathematics on the device. No fast math, no contraction:
 * CMakeLists.txt says --fmad=false, so that the device gives the CPU's bits. */
#define GGEXT_FN static __device__ __forceinline__
#include "cuda.h"

namespace {

constexpr int THREADS = 256;
/* Turns that a block of threads holds in shared memory at a time: 16 KiB. */
constexpr unsigned MOST_PAIRS = 1024;
/* Host rows go through the device in slabs of about this many bytes. */
constexpr size_t SLAB_BYTES = size_t(256) << 20;

/* A table in device memory: no frequencies, no rotation. */
struct device_table {
    const double *inv_freq;
    const long long *positions;
    double gain;
};

/* What a kernel needs of a rotation: the slab's rows, counted in values. */
struct device_rope {
    device_table to;
    device_table from;
    long long n_pairs;
    long long n_heads;
    long long head_dim;
    long long n_rows;
};

/* Returns a value as float64, exactly. */
__device__ double load(float value) { return (double)value; }
__device__ double load(__half value) { return (double)__half2float(value); }
__device__ double load(__nv_bfloat16 value) { return (double)__bfloat162float(value); }

/* Writes a value with one rounding, ties to even. */
__device__ void store(float *place, double value) { *place = __double2float_rn(value); }
__device__ void store(__half *place, double value) { *place = __double2half(value); }
__device__ void store(__nv_bfloat16 *place, double value) { *place = __double2bfloat16(value); }

/* Values that are read or written as one. */
template <typename T, int N> struct alignas(sizeof(T) * N) vector {
    T values[N];
};

/* Returns the turn of a pair at a row of the slab: from the one table to the other. */
__device__ struct ggext_turn turn_of(const device_rope &rope, long long row, long long pair)
{
    double angle = 0.0;
    double gain = 1.0;
    if (rope.to.inv_freq != nullptr) {
        angle = ggext_reduced_angle((double)rope.to.positions[row], rope.to.inv_freq[pair]);
        gain = rope.to.gain;
    }
    if (rope.from.inv_freq != nullptr) {
        angle -= ggext_reduced_angle((double)rope.from.positions[row], rope.from.inv_freq[pair]);
        gain /= rope.from.gain;
    }
    return ggext_turn_by(angle, gain);
}

/* Turns N pairs of a head, from pair `begin` on; their turns lie `stride` apart. */
template <typename T, enum ggext_layout LAYOUT, int N>
__device__ __forceinline__ void turn_group(const device_rope &rope, const T *head, T *out, long long begin,
                                           const double2 *turns, unsigned stride)
{
    const struct ggext_places at = ggext_places_of(LAYOUT, rope.n_pairs, begin);
    /* NORM: the N pairs are 2 N values in a row. NEOX: N first values, and N second ones elsewhere. */
    const long long a = at.first;
    const long long b = LAYOUT == GGEXT_NORM ? at.first + N : at.second;
    vector<T, N> x[2] = {*reinterpret_cast<const vector<T, N> *>(head + a),
                         *reinterpret_cast<const vector<T, N> *>(head + b)};
#pragma unroll
    for (int j = 0; j < N; j++) {
        T &first = LAYOUT == GGEXT_NORM ? x[2 * j / N].values[2 * j % N] : x[0].values[j];
        T &second = LAYOUT == GGEXT_NORM ? x[(2 * j + 1) / N].values[(2 * j + 1) % N] : x[1].values[j];
        const double2 cos_sin = turns[j * stride];
        const struct ggext_turn turn = {cos_sin.x, cos_sin.y};
        const struct ggext_pair pair = {load(first), load(second)};
        const struct ggext_pair turned = ggext_turned(pair, turn);
        store(&first, turned.first);
        store(&second, turned.second);
    }
    *reinterpret_cast<vector<T, N> *>(out + a) = x[0];
    *reinterpret_cast<vector<T, N> *>(out + b) = x[1];
}

/* Turns rows: a block of threads takes a row at a time, computes its turns once, in shared memory, and applies them to
 * all heads. A thread turns N pairs at a time, which are two vectors of N values; N divides n_pairs and, where above 1,
 * every vector is aligned. Turn j of N of group g of threads lies at j * groups + g, so that neighbouring threads read
 * neighbouring turns. */
template <typename T, enum ggext_layout LAYOUT, int N>
__global__ void __launch_bounds__(THREADS) rotate_rows(device_rope rope, const T *rows, T *out)
{
    extern __shared__ double2 turns[]; /* cos, sin */
    const long long row_size = rope.n_heads * rope.head_dim;
    const long long tail = rope.head_dim - 2 * rope.n_pairs;

    for (long long row = blockIdx.x; row < rope.n_rows; row += gridDim.x) {
        const T *in_row = rows + row * row_size;
        T *out_row = out + row * row_size;
        for (long long begin = 0; begin < rope.n_pairs; begin += MOST_PAIRS) {
            const unsigned n = (unsigned)min((long long)MOST_PAIRS, rope.n_pairs - begin);
            const unsigned groups = n / N;
            for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
                const struct ggext_turn turn = turn_of(rope, row, begin + i);
                turns[i % N * groups + i / N] = make_double2(turn.cos, turn.sin);
            }
            __syncthreads();

            /* Threads side by side take the groups of a head, and heads as far as there are threads. */
            const unsigned lanes = groups < blockDim.x ? groups : blockDim.x;
            const unsigned heads = blockDim.x / lanes;
            for (long long head = threadIdx.x / lanes; head < rope.n_heads; head += heads) {
                if (threadIdx.x >= lanes * heads)
                    break; /* left over */
                for (unsigned group = threadIdx.x % lanes; group < groups; group += lanes)
                    turn_group<T, LAYOUT, N>(rope, in_row + head * rope.head_dim, out_row + head * rope.head_dim,
                                             begin + (long long)group * N, turns + group, groups);
            }
            __syncthreads();
        }
        if (tail > 0 && out_row != in_row)
            for (long long i = threadIdx.x; i < tail * rope.n_heads; i += blockDim.x) {
                const long long place = i / tail * rope.head_dim + 2 * rope.n_pairs + i % tail;
                out_row[place] = in_row[place];
            }
    }
}

/* Starts the kernel of a type and a layout, by whole vectors of 16 bytes where rows allow it. */
template <typename T, enum ggext_layout LAYOUT> cudaError_t launch_layout(const device_rope &rope, const void *rows, void *out)
{
    constexpr int WIDE = 16 / sizeof(T);
    const unsigned blocks = (unsigned)(rope.n_rows < 1 << 20 ? rope.n_rows : 1 << 20);
    const size_t shared = sizeof(double2) * (rope.n_pairs < MOST_PAIRS ? (size_t)rope.n_pairs : MOST_PAIRS);
    /* Device arrays begin aligned; what follows is, if heads and halves are whole vectors. */
    if (rope.head_dim % WIDE == 0 && rope.n_pairs % WIDE == 0)
        rotate_rows<T, LAYOUT, WIDE><<<blocks, THREADS, shared>>>(rope, (const T *)rows, (T *)out);
    else
        rotate_rows<T, LAYOUT, 1><<<blocks, THREADS, shared>>>(rope, (const T *)rows, (T *)out);
    return cudaGetLastError();
}

/* Starts the kernel of a type. */
template <typename T>
cudaError_t launch_type(enum ggext_layout layout, const device_rope &rope, const void *rows, void *out)
{
    return layout == GGEXT_NORM ? launch_layout<T, GGEXT_NORM>(rope, rows, out)
                                : launch_layout<T, GGEXT_NEOX>(rope, rows, out);
}

/* Starts the rotation of device arrays; there must be at least one row. */
cudaError_t launch(enum ggext_type type, enum ggext_layout layout, const device_rope &rope, const void *rows, void *out)
{
    switch (type) {
    case GGEXT_F32:
        return launch_type<float>(layout, rope, rows, out);
    case GGEXT_F16:
        return launch_type<__half>(layout, rope, rows, out);
    default:
        return launch_type<__nv_bfloat16>(layout, rope, rows, out);
    }
}

/* Device memory that is given back at the end of the scope. */
struct device_array {
    void *data = nullptr;
    ~device_array() { cudaFree(data); }
    cudaError_t allocate(size_t bytes) { return cudaMalloc(&data, bytes); }
};

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess)                                                                                     \
            return error_;                                                                                             \
    } while (0)

/* A table's arrays on the device; positions are those of one slab. */
struct table_arrays {
    device_array inv_freq;
    device_array positions;

    cudaError_t allocate(const struct ggext_table &table, size_t n_pairs, size_t slab)
    {
        if (table.inv_freq == nullptr)
            return cudaSuccess;
        TRY(inv_freq.allocate(n_pairs * sizeof(double)));
        TRY(positions.allocate(slab * sizeof(long long)));
        return cudaMemcpy(inv_freq.data, table.inv_freq, n_pairs * sizeof(double), cudaMemcpyHostToDevice);
    }

    cudaError_t send_positions(const struct ggext_table &table, size_t begin, size_t n)
    {
        long long part[1024];
        if (table.inv_freq == nullptr)
            return cudaSuccess;
        for (size_t done = 0; done < n; done += 1024) {
            const size_t now = n - done < 1024 ? n - done : 1024;
            for (size_t i = 0; i < now; i++)
                part[i] = ggext_position_at(table.positions, begin + done + i);
            TRY(cudaMemcpy((long long *)positions.data + done, part, now * sizeof(long long), cudaMemcpyHostToDevice));
        }
        return cudaSuccess;
    }

    device_table view(const struct ggext_table &table) const
    {
        return {(const double *)inv_freq.data, (const long long *)positions.data, table.gain};
    }
};

/* What a rotation of up to `slab` rows needs on the device. */
struct device_request {
    table_arrays to;
    table_arrays from;
    device_array rows;
    device_array out;
    device_rope rope = {};

    cudaError_t prepare(const struct ggext_rope &asked, struct ggext_shape shape, size_t slab, bool in_place)
    {
        const size_t bytes = slab * shape.n_heads * shape.head_dim * ggext_type_size(shape.type);
        TRY(to.allocate(asked.to, asked.n_pairs, slab));
        TRY(from.allocate(asked.from, asked.n_pairs, slab));
        TRY(rows.allocate(bytes));
        if (!in_place)
            TRY(out.allocate(bytes));
        rope = {to.view(asked.to),       from.view(asked.from),    (long long)asked.n_pairs, (long long)shape.n_heads,
                (long long)shape.head_dim, 0};
        return cudaSuccess;
    }

    cudaError_t send_positions(const struct ggext_rope &asked, size_t begin, size_t n)
    {
        rope.n_rows = (long long)n;
        TRY(to.send_positions(asked.to, begin, n));
        return from.send_positions(asked.from, begin, n);
    }
};

/* Rotates rows of the host, a slab at a time; out may be rows. */
cudaError_t rotate(const struct ggext_rope &asked, struct ggext_shape shape, const char *rows, char *out)
{
    if (shape.n == 0)
        return cudaSuccess;
    const size_t row_bytes = shape.n_heads * shape.head_dim * ggext_type_size(shape.type);
    size_t slab = SLAB_BYTES / row_bytes + 1;
    slab = slab < shape.n ? slab : shape.n;
    device_request request;
    TRY(request.prepare(asked, shape, slab, true));
    for (size_t begin = 0; begin < shape.n; begin += slab) {
        const size_t n = shape.n - begin < slab ? shape.n - begin : slab;
        void *device = request.rows.data;
        TRY(request.send_positions(asked, begin, n));
        TRY(cudaMemcpy(device, rows + begin * row_bytes, n * row_bytes, cudaMemcpyHostToDevice));
        TRY(launch(shape.type, asked.layout, request.rope, device, device));
        TRY(cudaMemcpy(out + begin * row_bytes, device, n * row_bytes, cudaMemcpyDeviceToHost));
    }
    return cudaSuccess;
}

/* Two events on the device's clock. */
struct stopwatch {
    cudaEvent_t start = nullptr;
    cudaEvent_t stop = nullptr;
    ~stopwatch()
    {
        if (start != nullptr)
            cudaEventDestroy(start);
        if (stop != nullptr)
            cudaEventDestroy(stop);
    }
    cudaError_t make()
    {
        TRY(cudaEventCreate(&start));
        return cudaEventCreate(&stop);
    }
    /* Keeps the shorter of *seconds and the time between the events. */
    cudaError_t keep_best(double *seconds)
    {
        float milliseconds = 0.0f;
        TRY(cudaEventRecord(stop));
        TRY(cudaEventSynchronize(stop));
        TRY(cudaEventElapsedTime(&milliseconds, start, stop));
        if ((double)milliseconds * 1e-3 < *seconds)
            *seconds = (double)milliseconds * 1e-3;
        return cudaSuccess;
    }
};

/* Does what ggext_cuda_measure says. */
cudaError_t measure(const struct ggext_rope &asked, struct ggext_shape shape, int repeats, double *rotate_seconds,
                    double *copy_seconds)
{
    const size_t bytes = shape.n * shape.n_heads * shape.head_dim * ggext_type_size(shape.type);
    device_request request;
    stopwatch watch;
    double warm_up = 1e30;
    TRY(watch.make());
    TRY(request.prepare(asked, shape, shape.n, false));
    TRY(request.send_positions(asked, 0, shape.n));
    TRY(cudaMemset(request.rows.data, 0, bytes));
    *rotate_seconds = *copy_seconds = 1e30;
    for (int i = 0; i <= repeats; i++) {
        TRY(cudaEventRecord(watch.start));
        TRY(launch(shape.type, asked.layout, request.rope, request.rows.data, request.out.data));
        TRY(watch.keep_best(i == 0 ? &warm_up : rotate_seconds));
        TRY(cudaEventRecord(watch.start));
        TRY(cudaMemcpyAsync(request.out.data, request.rows.data, bytes, cudaMemcpyDeviceToDevice));
        TRY(watch.keep_best(i == 0 ? &warm_up : copy_seconds));
    }
    return cudaSuccess;
}

/* Returns CUDA's words for an error, which live as long as the program, or NULL for success. */
const char *words_of(cudaError_t error)
{
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

} // namespace

int ggext_cuda_devices(const char **reason)
{
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error == cudaSuccess && n == 0)
        error = cudaErrorNoDevice;
    *reason = words_of(error);
    return error == cudaSuccess ? n : 0;
}

const char *ggext_cuda_rotate(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows, void *out,
                              size_t)
{
    return words_of(rotate(*rope, shape, (const char *)rows, (char *)out));
}

const char *ggext_cuda_measure(const struct ggext_rope *rope, struct ggext_shape shape, int repeats,
                               double *rotate_seconds, double *copy_seconds)
{
    return words_of(measure(*rope, shape, repeats, rotate_seconds, copy_seconds));
}
