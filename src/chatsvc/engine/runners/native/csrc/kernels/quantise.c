/* Rounding to bytes: rows of activations, and matrices in the layout that matmul.c reads.
 *
 * Each group of GROUP numbers gets a Walsh-Hadamard transform before it is rounded. The transform is orthonormal, so
 * the dot product of two transformed vectors is that of the vectors; but no single outlier sets the scale of a whole
 * group. (QuaRot, arXiv 2404.00456, transforms whole rows; a group at a time needs no calibration, fits any width and
 * costs forty instructions.)
 */
#include <math.h>

#include "kernels.h"

enum { FEW_ROWS = 4 /* up to so many rows of a block are cheaper one by one */ };

/* Rounds one row's group to bytes and interleaves them, four at a time, with those of the block's other rows. */
INLINE void round_group(group g, int8_t *bytes, float *scale, int32_t *offset) {
    g = rotated(g);
    const float most = largest(g);
    const __m512 factor = _mm512_set1_ps(most > 0 ? 127.0f / most : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (int j = 0; j < GROUP / LANES; j++) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(g.part[j], factor));
        const __m128i rounded = _mm512_cvtsepi32_epi8(whole);
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si32(bytes, rounded);
        _mm_storeu_si32(bytes + 4 * ROWS, _mm_shuffle_epi32(rounded, 1));
        _mm_storeu_si32(bytes + 8 * ROWS, _mm_shuffle_epi32(rounded, 2));
        _mm_storeu_si32(bytes + 12 * ROWS, _mm_shuffle_epi32(rounded, 3));
        bytes += LANES * ROWS;
    }
    *scale = most / 127.0f;
    *offset = offset_of(_mm512_reduce_add_epi32(sum));
}

/* Transposes: lane r of vector c is what was lane c of vector r. */
INLINE void transpose(__m512 v[LANES]) {
    __m512 pairs[LANES], fours[LANES];
    for (int i = 0; i < LANES; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d low = _mm512_castps_pd(pairs[i + j]), high = _mm512_castps_pd(pairs[i + 2 + j]);
            fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int j = 0; j < 4; j++) { /* quarters of fours[4 i + j]: rows from 4 i on of columns j, 4 + j, 8 + j, 12 + j */
        const __m512 even_low = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88);
        const __m512 odd_low = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xDD);
        const __m512 even_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xDD);
        v[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        v[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        v[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
        v[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
}

/* Four numbers of each row, adjacent, as bytes. */
INLINE __m512i joined_bytes(const __m512i whole[4]) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i low = _mm512_packs_epi32(whole[0], whole[1]), high = _mm512_packs_epi32(whole[2], whole[3]);
    return _mm512_shuffle_epi8(_mm512_packs_epi16(low, high), order);
}

/* What round_group does, for ROWS rows at once. A lane is a row, so nothing is summed or compared across lanes. Each
 * row goes through the same operations in the same order as there, so it gets the same bits. */
static void round_groups(const float *const *values, const float *factors, const float *weight, int8_t *bytes,
                         float *scales, int32_t *offsets) {
    __m512 numbers[GROUP];
    for (int first = 0; first < GROUP; first += LANES) {
        __m512 v[LANES];
        for (int r = 0; r < ROWS; r++) v[r] = _mm512_loadu_ps(values[r] + first);
        transpose(v);
        for (int c = 0; weight && c < LANES; c++)
            v[c] = _mm512_mul_ps(_mm512_mul_ps(v[c], _mm512_loadu_ps(factors)), _mm512_set1_ps(weight[first + c]));
#pragma GCC unroll 4
        for (int step = 1; step < LANES; step *= 2)
#pragma GCC unroll 16
            for (int c = 0; c < LANES; c++)
                if (!(c & step)) {
                    const __m512 a = v[c], b = v[c + step];
                    v[c] = _mm512_add_ps(b, a);
                    v[c + step] = _mm512_sub_ps(a, b);
                }
        for (int c = 0; c < LANES; c++) numbers[first + c] = _mm512_mul_ps(v[c], _mm512_set1_ps(0.125f));
    }
    __m512 most = _mm512_setzero_ps();
    for (int i = 0; i < LANES; i++) {
        __m512 *n = numbers + i;
        const __m512 a = _mm512_add_ps(n[0], n[LANES]), b = _mm512_sub_ps(n[0], n[LANES]);
        const __m512 c = _mm512_add_ps(n[2 * LANES], n[3 * LANES]), d = _mm512_sub_ps(n[2 * LANES], n[3 * LANES]);
        n[0] = _mm512_add_ps(a, c);
        n[LANES] = _mm512_add_ps(b, d);
        n[2 * LANES] = _mm512_sub_ps(a, c);
        n[3 * LANES] = _mm512_sub_ps(b, d);
        for (int j = 0; j < GROUP; j += LANES) most = _mm512_max_ps(most, _mm512_abs_ps(n[j]));
    }
    const __mmask16 counts = _mm512_cmp_ps_mask(most, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 factor = _mm512_maskz_div_ps(counts, _mm512_set1_ps(127.0f), most);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < GROUP; i += 4) {
        __m512i whole[4];
        for (int j = 0; j < 4; j++) {
            whole[j] = _mm512_cvtps_epi32(_mm512_mul_ps(numbers[i + j], factor));
            sum = _mm512_add_epi32(sum, whole[j]);
        }
        _mm512_storeu_si512(bytes + i * ROWS, joined_bytes(whole));
    }
    _mm512_storeu_ps(scales, _mm512_div_ps(most, _mm512_set1_ps(127.0f)));
    _mm512_storeu_si512(offsets, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128)));
}

/* All rows of a block; missing ones are computed as copies of the first. */
static void quantise_many(const quantised_rows *to, int block, int num_rows, int depth, int first, int last,
                          const float *const *values, const float *factors, const float *weight) {
    float all_factors[ROWS];
    for (int r = 0; weight && r < ROWS; r++) all_factors[r] = factors[r < num_rows ? r : 0];
    for (int i = first; i < last; i++) {
        const size_t tile = tile_number(depth, block, i);
        const float *groups[ROWS];
        for (int r = 0; r < ROWS; r++) groups[r] = values[r < num_rows ? r : 0] + i * GROUP;
        round_groups(groups, all_factors, weight ? weight + i * GROUP : NULL, to->bytes + tile * GROUP * ROWS,
                     to->scales + tile * ROWS, to->offsets + tile * ROWS);
    }
}

void quantise_block(const quantised_rows *to, int block, int num_rows, int depth, int first, int last,
                    const float *const *values, const float *factors, const float *weight) {
    if (num_rows > FEW_ROWS) {
        quantise_many(to, block, num_rows, depth, first, last, values, factors, weight);
        return;
    }
    for (int i = first; i < last; i++) {
        const size_t tile = tile_number(depth, block, i);
        for (int r = 0; r < num_rows; r++) {
            group g = load_group(values[r] + i * GROUP);
            for (int j = 0; weight && j < GROUP / LANES; j++)
                g.part[j] = _mm512_mul_ps(_mm512_mul_ps(g.part[j], _mm512_set1_ps(factors[r])),
                                          _mm512_loadu_ps(weight + i * GROUP + j * LANES));
            round_group(g, to->bytes + tile * GROUP * ROWS + r * 4, &to->scales[tile * ROWS + r],
                        &to->offsets[tile * ROWS + r]);
        }
    }
}

uint16_t round_weights(const float *values, uint8_t *bytes) {
    const group g = rotated(load_group(values));
    float numbers[GROUP];
    store_group(numbers, g);
    const uint16_t half = _cvtss_sh(largest(g) / 127.0f, _MM_FROUND_TO_NEAREST_INT);
    const float scale = _cvtsh_ss(half); /* as a half it may be too small by 1 / 2048, hence the clamp */
    for (int k = 0; k < GROUP; k++) {
        const long rounded = scale > 0 ? lrintf(numbers[k] / scale) : 0;
        const long clamped = rounded > 127 ? 127 : rounded < -127 ? -127 : rounded;
        bytes[k] = (uint8_t)(clamped + 128);
    }
    return half;
}

void pack_row(matrix *m, int output, const float *values) {
    const int panel = output / LANES, lane = output % LANES;
    for (int i = 0; i < m->depth / GROUP; i++) {
        const size_t tile = tile_number(m->depth, panel, i);
        uint8_t bytes[GROUP];
        m->scales[tile * LANES + lane] = round_weights(values + i * GROUP, bytes);
        for (int k = 0; k < GROUP; k += 4) /* four inputs of an output, then the next output's */
            memcpy(m->bytes + tile * GROUP * LANES + k * LANES + lane * 4, bytes + k, 4);
    }
}
