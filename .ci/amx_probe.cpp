// Multiplies two tiles as ggml's AMX kernels do: exit status 0 if the product is right. A compiler that throws the
// configuration away as dead stores makes the first tile instruction an illegal one.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct alignas(64) Config {
    uint8_t palette = 0;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
};

static_assert(sizeof(Config) == 64, "what the processor loads");

// As in ggml: the configuration is a local variable that only the intrinsic reads.
__attribute__((noinline)) static void configure() {
    Config config;
    config.palette = 1;
    for (int tile = 0; tile < 3; ++tile) {
        config.rows[tile] = 16;
        config.bytes_per_row[tile] = 64;
    }
    _tile_loadconfig(&config);
}

int main() {
    const int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) {
        return 2;
    }
    alignas(64) static int8_t left[16][64], right[16][64];
    alignas(64) static int32_t product[16][16];
    memset(left, 2, sizeof left);
    memset(right, 3, sizeof right);
    configure();
    _tile_zero(0);
    _tile_loadd(1, left, 64);
    _tile_loadd(2, right, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, product, 64);
    _tile_release();
    for (auto & row : product) {
        for (int32_t value : row) {
            if (value != 64 * 2 * 3) {
                return 3;
            }
        }
    }
    return 0;
}
