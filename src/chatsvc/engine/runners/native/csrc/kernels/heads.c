/* A head of a row between the q/k/v product and attention: bias, norm, rotary embedding, Walsh-Hadamard
 * transform, rounding. It stays in registers throughout. */
#include "kernels.h"

typedef struct {
    __m512 part[MAX_HEAD_SIZE / LANES];
} head;

INLINE head load_head(const float *values, const float *bias, const int size) {
    head h;
    for (int i = 0; i < size / LANES; i++) {
        h.part[i] = _mm512_loadu_ps(values + i * LANES);
        if (bias) h.part[i] = _mm512_add_ps(h.part[i], _mm512_loadu_ps(bias + i * LANES));
    }
    return h;
}

/* RMSNorm of the head. */
INLINE head normed(head h, const float *weight, float epsilon, const int size) {
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < size / LANES; i++) squares = _mm512_fmadd_ps(h.part[i], h.part[i], squares);
    const __m512 factor =
        _mm512_set1_ps(1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / (float)size + epsilon));
    for (int i = 0; i < size / LANES; i++)
        h.part[i] = _mm512_mul_ps(_mm512_mul_ps(h.part[i], factor), _mm512_loadu_ps(weight + i * LANES));
    return h;
}

/* The rotary embedding; a pair is number i of the first half and number i of the second. */
INLINE head rope(head h, const float *cosines, const float *sines, const int size) {
    const int half = size / 2 / LANES;
    for (int i = 0; i < half; i++) {
        const __m512 c = _mm512_loadu_ps(cosines + i * LANES), s = _mm512_loadu_ps(sines + i * LANES);
        const __m512 a = h.part[i], b = h.part[half + i];
        h.part[i] = _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s));
        h.part[half + i] = _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s));
    }
    return h;
}

/* The Walsh-Hadamard transform of the whole head. */
INLINE head rotated_head(head h, const int size) {
    enum { PARTS = GROUP / LANES };
    for (int i = 0; i < size / LANES; i += PARTS) {
        const group g = rotated((group){{h.part[i], h.part[i + 1], h.part[i + 2], h.part[i + 3]}});
        for (int j = 0; j < PARTS; j++) h.part[i + j] = g.part[j];
    }
    for (int i = 0; size > GROUP && i < PARTS; i++) {
        const __m512 norm = _mm512_set1_ps(0.70710678f), a = h.part[i], b = h.part[PARTS + i];
        h.part[i] = _mm512_mul_ps(_mm512_add_ps(a, b), norm);
        h.part[PARTS + i] = _mm512_mul_ps(_mm512_sub_ps(a, b), norm);
    }
    return h;
}

/* Rounds to signed bytes; returns their scale. */
INLINE float round_head(head h, int8_t *bytes, int32_t *sum, const int size) {
    __m512 most = _mm512_setzero_ps();
    for (int i = 0; i < size / LANES; i++) most = _mm512_max_ps(most, _mm512_abs_ps(h.part[i]));
    const float limit = _mm512_reduce_max_ps(most);
    const __m512 factor = _mm512_set1_ps(limit > 0 ? 127.0f / limit : 0.0f);
    __m512i sums = _mm512_setzero_si512();
    for (int i = 0; i < size / LANES; i++) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(h.part[i], factor));
        sums = _mm512_add_epi32(sums, whole);
        _mm_storeu_si128((__m128i *)(bytes + i * LANES), _mm512_cvtsepi32_epi8(whole));
    }
    *sum = _mm512_reduce_add_epi32(sums);
    return limit / 127.0f;
}

INLINE head without(head h, const float *mean, const int size) {
    for (int i = 0; mean && i < size / LANES; i++) h.part[i] = _mm512_sub_ps(h.part[i], _mm512_loadu_ps(mean + i * LANES));
    return h;
}

/* A query or a key before the Walsh-Hadamard transform. */
INLINE head positioned(const head_input *in, const float *values, const float *bias, const float *norm,
                       const int size) {
    head h = load_head(values, bias, size);
    if (norm) h = normed(h, norm, in->epsilon, size);
    return in->cosines ? rope(h, in->cosines, in->sines, size) : h;
}

INLINE void round_heads_of(const head_input *in, query *queries, int num_queries, rounded_head *key,
                           rounded_head *value, const int size) {
    const float *values = in->values, *bias = in->bias;
    int32_t sum;
    for (int i = 0; i < num_queries; i++, values += size, bias += bias ? size : 0) {
        query *q = &queries[i];
        const head h = rotated_head(positioned(in, values, bias, in->query_norm, size), size);
        q->scale = round_head(h, q->bytes, &sum, size) / __builtin_sqrtf((float)size);
        q->offset = offset_of(sum);
    }
    const head k = without(positioned(in, values, bias, in->key_norm, size), in->mean_key_bias, size);
    key->scale = round_head(rotated_head(k, size), key->bytes, &sum, size);
    value->scale = round_head(load_head(values + size, bias ? bias + size : NULL, size), value->bytes, &sum, size);
}

void round_heads(const head_input *in, query *queries, int num_queries, rounded_head *key, rounded_head *value,
                 int head_size) {
    if (head_size == GROUP)
        round_heads_of(in, queries, num_queries, key, value, GROUP);
    else
        round_heads_of(in, queries, num_queries, key, value, MAX_HEAD_SIZE);
}
