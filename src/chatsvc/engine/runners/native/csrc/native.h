/* The native engine's inner interface: vectors, quantised matrices, the thread team, attention, one forward pass.
 *
 * Everything here is arithmetic on rows. A row's result depends on that row and on its own cache only, in a fixed order
 * of operations, so who shares the batch, how a prompt is cut into chunks, and what was cached changes no bit of it.
 *
 * Built for x86-64 with AVX-512 F/BW/DQ/VL and VNNI; the Python side looks before it loads this.
 */
#ifndef CHATSVC_NATIVE_H
#define CHATSVC_NATIVE_H

#include <immintrin.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    GROUP = 64,       /* numbers that share a scale, and the size of the Hadamard rotation in front of rounding */
    LANES = 16,       /* outputs of a panel, tokens of a cache tile: 32-bit numbers in a vector register */
    ROWS = 16,        /* rows that share one pass over a panel's weights */
    PAGE_TOKENS = 32, /* two cache tiles */
    MAX_THREADS = 64,
};

#define INLINE static inline __attribute__((always_inline))

/* Four bytes, beside each other in memory, in every lane: one side of vpdpbusd. */
INLINE __m512i broadcast_four(const void *bytes) {
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return _mm512_set1_epi32(four);
}

/* ---- vectors (vectors.c) ---- */

/* GROUP floats in registers. */
typedef struct {
    __m512 part[GROUP / LANES];
} group;

/* One butterfly inside a register: lanes whose bit is set get partner - self, the others partner + self. */
static inline __m512 butterfly(__m512 x, __m512 partner, __mmask16 upper) {
    return _mm512_mask_sub_ps(_mm512_add_ps(partner, x), upper, partner, x);
}

/* Orthonormal Walsh-Hadamard transform of a group, its own inverse: spreads an outlier over all before rounding. */
static inline group rotated(group g) {
    for (int i = 0; i < GROUP / LANES; i++) {
        __m512 x = g.part[i];
        x = butterfly(x, _mm512_permute_ps(x, 0xB1), 0xAAAA);
        x = butterfly(x, _mm512_permute_ps(x, 0x4E), 0xCCCC);
        x = butterfly(x, _mm512_shuffle_f32x4(x, x, 0xB1), 0xF0F0);
        x = butterfly(x, _mm512_shuffle_f32x4(x, x, 0x4E), 0xFF00);
        g.part[i] = _mm512_mul_ps(x, _mm512_set1_ps(0.125f)); /* 1 / sqrt(GROUP) */
    }
    const __m512 a = _mm512_add_ps(g.part[0], g.part[1]), b = _mm512_sub_ps(g.part[0], g.part[1]);
    const __m512 c = _mm512_add_ps(g.part[2], g.part[3]), d = _mm512_sub_ps(g.part[2], g.part[3]);
    return (group){{_mm512_add_ps(a, c), _mm512_add_ps(b, d), _mm512_sub_ps(a, c), _mm512_sub_ps(b, d)}};
}

static inline group load_group(const float *values) {
    group g;
    for (int i = 0; i < GROUP / LANES; i++) g.part[i] = _mm512_loadu_ps(values + i * LANES);
    return g;
}

static inline void store_group(float *values, group g) {
    for (int i = 0; i < GROUP / LANES; i++) _mm512_storeu_ps(values + i * LANES, g.part[i]);
}

/* The largest magnitude of a group. */
static inline float largest(group g) {
    const __m512 low = _mm512_max_ps(_mm512_abs_ps(g.part[0]), _mm512_abs_ps(g.part[1]));
    const __m512 high = _mm512_max_ps(_mm512_abs_ps(g.part[2]), _mm512_abs_ps(g.part[3]));
    return _mm512_reduce_max_ps(_mm512_max_ps(low, high));
}

/* y = x * scale[i] / rms(x); n is a multiple of LANES. */
void rms_norm(float *out, const float *x, const float *weight, int n, float epsilon);
/* e to the x to about 1e-7 of it, exactly 0 below -87. */
__m512 exp_vector(__m512 x);

/* ---- quantised rows and matrices (quantise.c, matmul.c) ---- */

/* Rows of signed bytes: value = scale of its group * byte. `offsets` are -128 * the sum of a group's bytes, because
 * weights are stored as unsigned bytes with 128 added. They lie in blocks of ROWS rows, neighbours beside each other. */
typedef struct {
    int8_t *bytes;    /* block x depth / 4 x row of the block x 4 */
    float *scales;    /* block x group x row of the block */
    int32_t *offsets; /* block x group x row of the block */
} quantised_rows;

/* A matrix of `width` outputs by `depth` inputs, in panels of LANES outputs; see matmul.c for the layout. */
typedef struct {
    uint8_t *bytes;
    uint16_t *scales; /* IEEE half, panel x group x lane */
    int width, depth;
} matrix;

void quantise_row(const quantised_rows *to, int row, int depth, const float *values);
/* Pack the float32 weights of one output; rotates and rounds them. */
void pack_row(matrix *m, int output, const float *values);
/* Row `index` of a matrix as float32, unrotated: an embedding. */
void unpack_row(const matrix *m, int index, float *out);

typedef enum { STORE, ADD, GATE } epilogue;
/* Outputs of panels [first, last) for `num_rows` rows: out[row * stride + column] = or += the product. With GATE the
 * panels alternate between gate and up, and half as many outputs silu(gate) * up are stored. */
void multiply_panels(const matrix *m, const quantised_rows *rows, int num_rows, int first, int last, float *out,
                     size_t stride, epilogue how);

/* ---- the cache and attention (attention.c) ---- */

/* How keys and values lie in memory. A page holds PAGE_TOKENS tokens of every layer and KV head. */
typedef struct {
    int num_kv_heads, head_size;
    uint8_t *pages;
    size_t page_bytes;
} kv_cache;

/* Rotate (Walsh-Hadamard) a key's or a query's head in place; both are, so their product stays. */
void rotate_head(float *head, int head_size);
size_t kv_page_bytes(int num_layers, int num_kv_heads, int head_size);
void kv_write(const kv_cache *cache, int page, int layer, int kv_head, int slot, const float *key, const float *value);

/* One query vector: signed bytes, their scale (softmax scale included), -128 * their sum, and how much it may see. */
typedef struct {
    const int8_t *bytes;
    float scale;
    int32_t offset;
    int num_tokens;
    float *out; /* head_size floats */
} query;

/* Round a rotated query to bytes; fills `scale`, `offset` and, at `bytes`, head_size bytes. */
void quantise_query(query *q, int8_t *bytes, const float *head, int head_size);

enum { QUERIES = 4 };
/* Attention of up to QUERIES queries over one KV head; `scores` has room for QUERIES x tokens (rounded up to LANES). */
void attend(const kv_cache *cache, const int32_t *pages, int layer, int kv_head, const query *queries, int num_queries,
            float *scores, size_t scores_stride);

/* ---- the thread team (team.c) ---- */

typedef struct team team;
typedef void (*team_work)(void *context, int thread);
team *team_new(int num_threads);
void team_free(team *t);
int team_size(const team *t);
/* Run `work` once on every thread, the caller's among them. */
void team_run(team *t, team_work work, void *context);
/* Inside work: wait until every thread is here. */
void team_barrier(team *t);

#endif
