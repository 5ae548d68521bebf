/* The paged KV cache, in bytes, and attention over it in VNNI dot products.
 *
 * A page holds, for each layer and KV head, two tiles of LANES tokens. A tile is
 *   keys    [head_size / 4][LANES][4] unsigned bytes (128 added): four numbers of a token, then the next token's
 *   values  [LANES / 4][head_size][4] signed bytes: one number of four tokens, then the next number
 *   scales  [LANES] floats of the keys, then [LANES] of the values
 *
 * Keys and queries are transformed (Walsh-Hadamard) before they are rounded, so a channel that is always large does
 * not cost the others precision. Probabilities are rounded to 255 steps of the largest in their tile, so that small
 * ones in far tiles survive. A query visits its tiles in order, whatever else is in the batch.
 */
#include <math.h>

#include "kernels.h"

enum { TILES = PAGE_TOKENS / LANES, AHEAD_TILES = 16 };

static size_t tile_bytes(int head_size) { return (size_t)2 * LANES * head_size + 2 * LANES * sizeof(float); }

size_t kv_page_bytes(int num_layers, int num_kv_heads, int head_size) {
    return (size_t)num_layers * num_kv_heads * TILES * tile_bytes(head_size);
}

INLINE uint8_t *tile_of(const kv_cache *cache, const kv_head_cache *head, int tile, int head_size) {
    const size_t number = ((size_t)head->layer * cache->num_kv_heads + head->kv_head) * TILES + tile % TILES;
    return cache->pages + (size_t)head->pages[tile / TILES] * cache->page_bytes + number * tile_bytes(head_size);
}

static int num_tiles_of(const kv_head_cache *head) { return (head->num_tokens + LANES - 1) / LANES; }

void kv_write(const kv_cache *cache, int page, int layer, int kv_head, int slot, const rounded_head *key,
              const rounded_head *value) {
    const int head_size = cache->head_size, lane = slot % LANES;
    const kv_head_cache head = {&page, layer, kv_head, PAGE_TOKENS};
    uint8_t *tile = tile_of(cache, &head, slot / LANES, head_size), *values = tile + (size_t)LANES * head_size;
    float *scales = (float *)(values + (size_t)LANES * head_size);
    uint8_t *keys = tile + lane * 4, *fours = values + lane / 4 * 4 * head_size;
    for (int i = 0; i < head_size; i += LANES) {
        const __m128i bytes = _mm_load_si128((const __m128i *)(key->bytes + i));
        const __m128i unsigned_bytes = _mm_xor_si128(bytes, _mm_set1_epi8(-128)); /* adds 128 */
        _mm_storeu_si32(keys + i * LANES, unsigned_bytes);
        _mm_storeu_si32(keys + (i + 4) * LANES, _mm_shuffle_epi32(unsigned_bytes, 1));
        _mm_storeu_si32(keys + (i + 8) * LANES, _mm_shuffle_epi32(unsigned_bytes, 2));
        _mm_storeu_si32(keys + (i + 12) * LANES, _mm_shuffle_epi32(unsigned_bytes, 3));
        for (int d = i; d < i + LANES; d++) fours[d * 4 + lane % 4] = (uint8_t)value->bytes[d];
    }
    scales[lane] = key->scale;
    scales[LANES + lane] = value->scale;
}

/* Scores of one tile for all queries, -infinity for tokens after the query's own. */
INLINE void score_tile(const uint8_t *keys, int tile, const query *queries, const int num_queries, const int head_size,
                       float *scores, size_t stride, __m512 *most) {
    const __m512 key_scales = _mm512_loadu_ps((const float *)(keys + (size_t)2 * LANES * head_size));
    const __m512i positions = _mm512_add_epi32(
        _mm512_set1_epi32(tile * LANES), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    __m512i dots[QUERIES];
    for (int q = 0; q < num_queries; q++) dots[q] = _mm512_set1_epi32(queries[q].offset);
#pragma GCC unroll 4
    for (int d = 0; d < head_size; d += 4) {
        const __m512i four_keys = _mm512_loadu_si512(keys + (size_t)d * LANES);
        for (int q = 0; q < num_queries; q++)
            dots[q] = _mm512_dpbusd_epi32(dots[q], four_keys, broadcast_four(queries[q].bytes + d));
    }
    for (int q = 0; q < num_queries; q++) {
        const __mmask16 seen = _mm512_cmplt_epi32_mask(positions, _mm512_set1_epi32(queries[q].num_tokens));
        const __m512 scale = _mm512_mul_ps(key_scales, _mm512_set1_ps(queries[q].scale));
        const __m512 score = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), seen, _mm512_cvtepi32_ps(dots[q]), scale);
        _mm512_storeu_ps(scores + q * stride + (size_t)tile * LANES, score);
        most[q] = _mm512_max_ps(most[q], score);
    }
}

/* The weights of one tile's tokens for one query, rounded to 0..255, four tokens to a register; returns a step's
 * size. */
INLINE float weigh_tile(__m512 score, __m512 most, __m512 value_scales, __m512 *sum, __m512i *four_steps) {
    const __m512 probability = exp_vector(_mm512_sub_ps(score, most));
    *sum = _mm512_add_ps(*sum, probability);
    /* A masked token has no weight, whatever bytes (NaN scales, even) an earlier sequence has left in its slot. */
    const __mmask16 counts = _mm512_cmp_ps_mask(probability, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 weight = _mm512_maskz_mul_ps(counts, probability, value_scales);
    const float largest_weight = _mm512_reduce_max_ps(weight);
    const __m512 factor = _mm512_set1_ps(largest_weight > 0 ? 255.0f / largest_weight : 0.0f);
    const __m128i steps = _mm512_cvtusepi32_epi8(_mm512_cvtps_epu32(_mm512_mul_ps(weight, factor)));
    four_steps[0] = _mm512_broadcastd_epi32(steps);
    four_steps[1] = _mm512_broadcastd_epi32(_mm_shuffle_epi32(steps, 1));
    four_steps[2] = _mm512_broadcastd_epi32(_mm_shuffle_epi32(steps, 2));
    four_steps[3] = _mm512_broadcastd_epi32(_mm_shuffle_epi32(steps, 3));
    return largest_weight / 255.0f;
}

/* Adds one tile's values, weighted, to the queries' outputs; `sums` collects the probabilities. */
INLINE void add_tile(const uint8_t *keys, int tile, const int num_queries, const int head_size, const float *scores,
                     size_t stride, const __m512 *most, __m512 *sums, __m512 (*outputs)[8]) {
    const uint8_t *values = keys + (size_t)LANES * head_size;
    const __m512 value_scales = _mm512_loadu_ps((const float *)(values + (size_t)LANES * head_size) + LANES);
    __m512i four_steps[QUERIES][4];
    float step[QUERIES];
    for (int q = 0; q < num_queries; q++)
        step[q] = weigh_tile(_mm512_loadu_ps(scores + q * stride + (size_t)tile * LANES), most[q], value_scales,
                             &sums[q], four_steps[q]);
#pragma GCC unroll 8
    for (int j = 0; j < head_size / LANES; j++)
        for (int q = 0; q < num_queries; q++) {
            __m512i dots = _mm512_setzero_si512();
            for (int i = 0; i < 4; i++)
                dots = _mm512_dpbusd_epi32(dots, four_steps[q][i],
                                           _mm512_loadu_si512(values + (size_t)i * 4 * head_size + j * 64));
            outputs[q][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(step[q]), outputs[q][j]);
        }
}

/* Prefetches the tile AHEAD_TILES after this one; past the head's end, the next head's. */
INLINE void prefetch_ahead(const kv_cache *cache, const kv_head_cache *head, const kv_head_cache *next, int tile,
                           int head_size) {
    const int num_tiles = num_tiles_of(head);
    tile += num_tiles < AHEAD_TILES ? num_tiles : AHEAD_TILES;
    if (tile >= num_tiles) {
        tile -= num_tiles;
        head = next;
        if (tile >= num_tiles_of(head)) return;
    }
    prefetch(tile_of(cache, head, tile, head_size), tile_bytes(head_size));
}

INLINE void attend_queries(const kv_cache *cache, const kv_head_cache *head, const kv_head_cache *next,
                           const query *queries, const int num_queries, const int head_size, float *scores,
                           size_t stride) {
    const int num_tiles = num_tiles_of(head);
    __m512 most[QUERIES], sums[QUERIES], outputs[QUERIES][8];
    for (int q = 0; q < num_queries; q++) {
        most[q] = _mm512_set1_ps(-INFINITY);
        sums[q] = _mm512_setzero_ps();
        for (int j = 0; j < head_size / LANES; j++) outputs[q][j] = _mm512_setzero_ps();
    }
    for (int tile = 0; tile < num_tiles; tile++) {
        prefetch_ahead(cache, head, next, tile, head_size);
        score_tile(tile_of(cache, head, tile, head_size), tile, queries, num_queries, head_size, scores, stride, most);
    }
    for (int q = 0; q < num_queries; q++) most[q] = _mm512_set1_ps(_mm512_reduce_max_ps(most[q]));
    for (int tile = 0; tile < num_tiles; tile++)
        add_tile(tile_of(cache, head, tile, head_size), tile, num_queries, head_size, scores, stride, most, sums, outputs);
    for (int q = 0; q < num_queries; q++) {
        const __m512 sum = _mm512_set1_ps(_mm512_reduce_add_ps(sums[q]));
        for (int j = 0; j < head_size / LANES; j++)
            _mm512_storeu_ps(queries[q].out + j * LANES, _mm512_div_ps(outputs[q][j], sum));
    }
}

#define CASE(N, D) \
    case N: attend_queries(cache, head, next, queries, N, D, scores, scores_stride); break;

void attend(const kv_cache *cache, const kv_head_cache *head, const kv_head_cache *next, const query *queries,
            int num_queries, float *scores, size_t scores_stride) {
    if (cache->head_size == 64)
        switch (num_queries) { CASE(1, 64) CASE(2, 64) CASE(3, 64) CASE(4, 64) }
    else
        switch (num_queries) { CASE(1, 128) CASE(2, 128) CASE(3, 128) CASE(4, 128) }
}
