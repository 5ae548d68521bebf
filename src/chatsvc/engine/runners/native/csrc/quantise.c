/* Rounding to bytes: rows of activations, and matrices in the layout that matmul.c reads.
 *
 * Each group of GROUP numbers is rotated (Walsh-Hadamard) before it is rounded. The rotation is orthonormal, so the
 * product of two rotated vectors is the product of the vectors; what it changes is that no single outlier sets the scale
 * of a whole group. (QuaRot, arXiv 2404.00456, does it for whole rows; a group at a time needs no calibration, fits any
 * width and costs forty instructions.)
 */
#include <math.h>

#include "native.h"

void quantise_row(const quantised_rows *to, int row, int depth, const float *values) {
    const int num_groups = depth / GROUP, lane = row % ROWS;
    const size_t block = row / ROWS;
    int8_t *bytes = to->bytes + block * depth * ROWS + lane * 4;
    float *scales = to->scales + block * num_groups * ROWS + lane;
    int32_t *offsets = to->offsets + block * num_groups * ROWS + lane;
    for (int i = 0; i < num_groups; i++) {
        const group g = rotated(load_group(values + i * GROUP));
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
        scales[i * ROWS] = most / 127.0f;
        offsets[i * ROWS] = -128 * _mm512_reduce_add_epi32(sum);
    }
}

/* Where byte `k` of a group of output `lane` lies inside a tile of GROUP x LANES bytes: four neighbours of k together. */
static size_t in_tile(int k, int lane) { return (size_t)(k / 4) * (4 * LANES) + (size_t)lane * 4 + k % 4; }

void pack_row(matrix *m, int output, const float *values) {
    const int num_groups = m->depth / GROUP, panel = output / LANES, lane = output % LANES;
    for (int g = 0; g < num_groups; g++) {
        const size_t tile = (size_t)panel * num_groups + g;
        const group whole = rotated(load_group(values + g * GROUP));
        float numbers[GROUP];
        store_group(numbers, whole);
        const uint16_t half = _cvtss_sh(largest(whole) / 127.0f, _MM_FROUND_TO_NEAREST_INT);
        const float scale = _cvtsh_ss(half); /* rounding to a half may make it too small by 1 / 2048: clamped */
        m->scales[tile * LANES + lane] = half;
        uint8_t *bytes = m->bytes + tile * GROUP * LANES;
        for (int k = 0; k < GROUP; k++) {
            const long rounded = scale > 0 ? lrintf(numbers[k] / scale) : 0;
            const long clamped = rounded > 127 ? 127 : rounded < -127 ? -127 : rounded;
            bytes[in_tile(k, lane)] = (uint8_t)(clamped + 128);
        }
    }
}

void unpack_row(const matrix *m, int index, float *out) {
    const int num_groups = m->depth / GROUP, panel = index / LANES, lane = index % LANES;
    for (int g = 0; g < num_groups; g++) {
        const size_t tile = (size_t)panel * num_groups + g;
        const uint8_t *bytes = m->bytes + tile * GROUP * LANES;
        const float scale = _cvtsh_ss(m->scales[tile * LANES + lane]);
        for (int k = 0; k < GROUP; k++) out[g * GROUP + k] = scale * (float)(bytes[in_tile(k, lane)] - 128);
        store_group(out + g * GROUP, rotated(load_group(out + g * GROUP)));
    }
}
