/* Products of byte rows with byte matrices: VNNI dot products in a group, float32 sums over groups.
 *
 * A matrix lies in panels of LANES outputs. A panel is a row of tiles, one for each group of GROUP inputs. A tile is
 * [GROUP / 4][LANES][4] unsigned bytes: four inputs of an output adjacent, as vpdpbusd reads them. Weights are stored
 * with 128 added, because that operand is unsigned; quantised_rows.offsets subtracts it again.
 *
 * A panel is read once for a block of ROWS rows. Weights stream from memory, the rows stay in L1.
 *
 * For PEAK only the upper halves of the bytes are read: a byte 16h + l is taken for 16h + 8, the middle of its range,
 * computed as 8 (2h + 1). A byte of a plane holds the halves for two steps.
 */
#include <math.h>

#include "kernels.h"

enum { AHEAD_BYTES = 6144 };

/* ROWS sums and ROWS dot products exceed the 32 registers. Left alone, the compiler spills dot products, which are
 * used at every step; this makes it spill the sums, which are used once a group. */
enum { IN_REGISTERS = 12 };
#define IN_MEMORY(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

/* Which bytes are read: whole ones, two planes, or the upper plane. */
typedef enum { WHOLE, JOINED, UPPER } form;

/* The weights of a step of four inputs, for LANES outputs, from a tile or from its two planes. */
INLINE __m512i weights_of(const uint8_t *tile, const uint8_t *low_tile, int step, const form how) {
    if (how == WHOLE) return _mm512_load_si512(tile + step * 4 * LANES);
    const __m512i high = _mm512_load_si512(tile + step / 2 * 4 * LANES);
    if (how == UPPER) {
        const __m512i doubled = step % 2 ? _mm512_srli_epi16(high, 3) : _mm512_slli_epi16(high, 1);
        return _mm512_ternarylogic_epi32(doubled, _mm512_set1_epi8(0x1E), _mm512_set1_epi8(1), 0xEA); /* (a & b) | c */
    }
    const __m512i low = _mm512_load_si512(low_tile + step / 2 * 4 * LANES), lower = _mm512_set1_epi8(0x0F);
    const __m512i upper_half = step % 2 ? high : _mm512_slli_epi16(high, 4);
    const __m512i lower_half = step % 2 ? _mm512_srli_epi16(low, 4) : low;
    return _mm512_ternarylogic_epi32(upper_half, lower_half, lower, 0xD8); /* c ? b : a */
}

/* sums[r] = the product of row r of a block with one panel, for r < num_rows (a constant once inlined). The order of
 * a row's float additions is the same for every num_rows. */
INLINE void panel_product(const matrix *m, const quantised_rows *rows, int block, const int num_rows, int panel,
                          __m512 *sums, const form how) {
    const int num_groups = m->depth / GROUP;
    const size_t tile_bytes = GROUP * LANES / (how == WHOLE ? 1 : 2);
    const uint8_t *tile = m->bytes + (size_t)panel * num_groups * tile_bytes;
    const uint8_t *low_tile = how == JOINED ? m->low + (size_t)panel * num_groups * tile_bytes : NULL;
    const uint16_t *scales = m->scales + (size_t)panel * num_groups * LANES;
    const int8_t *bytes = rows->bytes + (size_t)block * m->depth * ROWS;
    const float *row_scales = rows->scales + (size_t)block * num_groups * ROWS;
    const int32_t *offsets = rows->offsets + (size_t)block * num_groups * ROWS;
#pragma GCC unroll 16
    for (int r = 0; r < num_rows; r++) sums[r] = _mm512_setzero_ps();
    for (int g = 0; g < num_groups; g++) {
        __m512i dots[ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < num_rows; r++) dots[r] = _mm512_set1_epi32(how == UPPER ? offsets[r] / 8 : offsets[r]);
#pragma GCC unroll 4
        for (int k = 0; k < GROUP / 4; k++) {
            const __m512i weights = weights_of(tile, low_tile, k, how);
            if (how == WHOLE || k % 2 == 0)
                _mm_prefetch((const char *)tile + k * 4 * LANES / (how == WHOLE ? 1 : 2) + AHEAD_BYTES, _MM_HINT_T1);
            if (how == JOINED && k % 2 == 0)
                _mm_prefetch((const char *)low_tile + k * 2 * LANES + AHEAD_BYTES, _MM_HINT_T1);
#pragma GCC unroll 16
            for (int r = 0; r < num_rows; r++)
                dots[r] = _mm512_dpbusd_epi32(dots[r], weights, broadcast_four(bytes + k * 4 * ROWS + r * 4));
        }
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
#pragma GCC unroll 16
        for (int r = 0; r < num_rows; r++) {
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r]));
            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), both, sums[r]);
        }
        if (num_rows > IN_REGISTERS) IN_MEMORY(sums);
        tile += tile_bytes;
        if (how == JOINED) low_tile += tile_bytes;
        scales += LANES;
        bytes += GROUP * ROWS;
        row_scales += ROWS;
        offsets += ROWS;
    }
}

INLINE void finish(const __m512 *sums, const __m512 *gates, const int num_rows, float *out, size_t stride,
                   epilogue how) {
#pragma GCC unroll 16
    for (int r = 0; r < num_rows; r++, out += stride) {
        __m512 value = sums[r];
        if (how == PEAK) { /* the maximum instruction may drop NaN */
            const int is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q) != 0;
            *out = is_nan ? NAN : 8.0f * _mm512_reduce_max_ps(value);
            continue;
        }
        if (how == ADD) value = _mm512_add_ps(_mm512_loadu_ps(out), value);
        if (how == GATED) {
            const __m512 gate = gates[r], one = _mm512_set1_ps(1.0f);
            const __m512 decay = exp_vector(_mm512_sub_ps(_mm512_setzero_ps(), gate));
            value = _mm512_mul_ps(_mm512_div_ps(gate, _mm512_add_ps(one, decay)), value);
        }
        _mm512_storeu_ps(out, value);
    }
}

INLINE void multiply_block(const matrix *m, const quantised_rows *rows, int row, const int num_rows, int panel,
                           float *out, size_t stride, epilogue how) {
    __m512 sums[ROWS], gates[ROWS];
    out += (size_t)row * stride + (how == PEAK ? panel : (how == GATED ? panel / 2 : panel) * LANES);
    if (how == GATED) {
        panel_product(m, rows, row / ROWS, num_rows, panel, gates, WHOLE);
        panel_product(m, rows, row / ROWS, num_rows, panel + 1, sums, WHOLE);
    } else if (how == PEAK) {
        panel_product(m, rows, row / ROWS, num_rows, panel, sums, UPPER);
    } else if (how == STORE_JOINED) {
        panel_product(m, rows, row / ROWS, num_rows, panel, sums, JOINED);
    } else {
        panel_product(m, rows, row / ROWS, num_rows, panel, sums, WHOLE);
    }
    finish(sums, gates, num_rows, out, stride, how);
}

/* One function for each number of rows, so that the sums live in registers. */
#define CASE(N) \
    case N: multiply_block(m, rows, row, N, panel, out, stride, how); break;

void multiply_panels(const matrix *m, const quantised_rows *rows, int num_rows, int first, int last, float *out,
                     size_t stride, epilogue how) {
    for (int panel = first; panel < last; panel += how == GATED ? 2 : 1)
        for (int row = 0; row < num_rows; row += ROWS)
            switch (num_rows - row >= ROWS ? ROWS : num_rows - row) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
                CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14) CASE(15) CASE(16)
            }
}
