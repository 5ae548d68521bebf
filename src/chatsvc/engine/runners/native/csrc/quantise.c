/* Rounding to bytes: rows of activations, and matrices in the layout that matmul.c reads.
 *
 * Each group of GROUP numbers is rotated (Walsh-Hadamard) before it is rounded. The rotation is orthonormal, so the
 * product of two rotated vectors is the product of the vectors; what it changes is that no single outlier sets the scale
 * of a whole group. (QuaRot, arXiv 2404.00456, does it for whole rows; a group at a time needs no calibration, fits any
 * width and costs forty instructions.)
 */
#include <math.h>

#include "native.h"

/* Round a group to bytes and put them, four neighbours at a time, among those of the other rows of the block. */
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
    *offset = -128 * _mm512_reduce_add_epi32(sum);
}

void quantise_block(const quantised_rows *to, int block, int num_rows, int depth, int first, int last,
                    const float *const *values, const float *factors, const float *weight) {
    for (int i = first; i < last; i++) {
        const size_t place = tile_number(depth, block, i);
        for (int r = 0; r < num_rows; r++) {
            group g = load_group(values[r] + i * GROUP);
            for (int j = 0; weight && j < GROUP / LANES; j++)
                g.part[j] = _mm512_mul_ps(_mm512_mul_ps(g.part[j], _mm512_set1_ps(factors[r])),
                                          _mm512_loadu_ps(weight + i * GROUP + j * LANES));
            round_group(g, to->bytes + place * GROUP * ROWS + r * 4, &to->scales[place * ROWS + r],
                        &to->offsets[place * ROWS + r]);
        }
    }
}

uint16_t round_weights(const float *values, uint8_t *bytes) {
    const group g = rotated(load_group(values));
    float numbers[GROUP];
    store_group(numbers, g);
    const uint16_t half = _cvtss_sh(largest(g) / 127.0f, _MM_FROUND_TO_NEAREST_INT);
    const float scale = _cvtsh_ss(half); /* rounding to a half may make it too small by 1 / 2048: clamped */
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
        for (int k = 0; k < GROUP; k += 4) /* four neighbours of an output, then the next output's */
            memcpy(m->bytes + tile * GROUP * LANES + k * LANES + lane * 4, bytes + k, 4);
    }
}
