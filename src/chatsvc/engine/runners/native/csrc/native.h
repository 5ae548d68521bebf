/* The native engine's inner interface: vectors, quantised matrices, the thread team, attention, one forward pass.
 *
 * Everything here is arithmetic on rows. A row's result depends on that row and on its own cache only, in a fixed order
 * of operations, so who shares the batch, how a prompt is cut into chunks, and what was cached changes no bit of it.
 * (vocabulary.c says how a largest logit is found, and how seldom one may be overlooked.)
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
    MAX_HEAD_SIZE = 2 * GROUP, /* the other one is GROUP */
    MAX_THREADS = 64,
};

#define INLINE static inline __attribute__((always_inline))

/* Four bytes, beside each other in memory, in every lane: one side of vpdpbusd. */
INLINE __m512i broadcast_four(const void *bytes) {
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return _mm512_set1_epi32(four);
}

/* -128 times the sum of a group's bytes. The product wraps around, because rounding a number that is not finite gives the
 * smallest integer, and an overflow of signed integers would be undefined. */
INLINE int32_t offset_of(int32_t sum) { return (int32_t)(0u - ((uint32_t)sum << 7)); }

/* Ask for bytes that will be needed soon; into the second cache, which can wait for more of them at a time. */
INLINE void prefetch(const uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < size; i += 64) _mm_prefetch((const char *)bytes + i, _MM_HINT_T1);
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

/* 1 / rms(x), what RMSNorm multiplies a row by before its weight; n is a multiple of LANES. */
float rms_factor(const float *x, int n, float epsilon);
/* The squared length of each group of x * factor * weight; n is a multiple of GROUP. */
void group_energies(float *out, const float *x, float factor, const float *weight, int n);
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
    uint8_t *low; /* the lower halves of the bytes, where those are cut into planes and `bytes` are the upper ones */
} matrix;

/* Where a matrix's panels and a panel's tiles are counted from: tile `group` of `panel`. */
static inline size_t tile_number(int depth, int panel, int group) { return (size_t)panel * (depth / GROUP) + group; }

/* Groups [first, last) of the rows of one block. With `weight`, row r is values[r] * factors[r] * weight first. */
void quantise_block(const quantised_rows *to, int block, int num_rows, int depth, int first, int last,
                    const float *const *values, const float *factors, const float *weight);
/* A group of weights, rotated and rounded to bytes with 128 added; returns its scale, an IEEE half. */
uint16_t round_weights(const float *values, uint8_t *bytes);
/* Pack the float32 weights of one output. */
void pack_row(matrix *m, int output, const float *values);

/* What becomes of a product. GATE: panels alternate between gate and up, and half as many outputs silu(gate) * up are
 * stored. STORE_JOINED: the matrix is cut into planes (vocabulary.c). PEAK: so it is, only the upper plane is looked
 * at, and of a panel's outputs the largest is stored, out[row * stride + panel]. */
typedef enum { STORE, ADD, GATE, STORE_JOINED, PEAK } epilogue;
/* Outputs of panels [first, last) for `num_rows` rows: out[row * stride + column] = or += the product. */
void multiply_panels(const matrix *m, const quantised_rows *rows, int num_rows, int first, int last, float *out,
                     size_t stride, epilogue how);

/* ---- the vocabulary: embeddings, and logits of which the largest are wanted (vocabulary.c) ---- */

/* A matrix whose bytes are cut into two planes of half bytes, each in tiles like a matrix's of half the size. */
typedef struct {
    matrix planes;
    uint16_t *largest_scales; /* of a panel's outputs: group x panel, the panels rounded up to LANES */
} vocabulary;

/* Where more logits are wanted they lie in most panels, and with more rows computing takes longer than reading: there,
 * all panels are computed. */
enum { MOST_SOUGHT = 16, MOST_SEEKERS = 8 };

/* What a row wants of its logits. */
typedef struct {
    float *bounds; /* how far the peak of each panel may be off */
    int32_t *slots; /* where the logits of each panel are to go */
    int32_t *panels; /* the panels that may hold one of the largest */
    int num_panels;
    float *logits; /* those of panels[0], then of panels[1], and so on */
} wanted_logits;

size_t vocabulary_bytes(int width, int depth);
uint8_t *place_vocabulary(vocabulary *v, int width, int depth, uint8_t *at);
/* Pack the float32 weights of one token. Those of a panel by one thread. */
void pack_token(vocabulary *v, int token, const float *values);
/* A token's weights as float32, unrotated: an embedding. */
void unpack_token(const vocabulary *v, int token, float *out);
/* Choose the panels that may hold one of the `num_largest` largest logits, and set `bit` for each in `marks`. `peaks`
 * are the largest logits of the panels, nearly, for a row with these `energies`; `room` is for num_largest numbers. */
void want_panels(const vocabulary *v, const float *peaks, int num_largest, const float *energies, int32_t *room,
                 wanted_logits *wanted, uint16_t bit, _Atomic uint16_t *marks);
void prefetch_panel(const vocabulary *v, int panel);
/* The logits of a panel for the rows of a block whose bits are set. */
void compute_wanted(const vocabulary *v, const quantised_rows *rows, int block, int num_rows, int panel, uint16_t bits,
                    const wanted_logits *wanted);
/* The `num_largest` largest of what was wanted, largest first, the smaller id first where they are equal. */
void largest_wanted(const vocabulary *v, const wanted_logits *wanted, int num_largest, int32_t *ids, float *logits);

/* Whether none of `n` numbers is NaN or infinite (vectors.c). */
int all_finite(const float *numbers, int n);

/* Where the `k` largest of `n` numbers are, largest first, the first first where they are equal (top.c). */
void find_largest(const float *numbers, int n, int k, int32_t *places);

/* ---- the cache and attention (attention.c) ---- */

/* How keys and values lie in memory. A page holds PAGE_TOKENS tokens of every layer and KV head. */
typedef struct {
    int num_kv_heads, head_size;
    uint8_t *pages;
    size_t page_bytes;
} kv_cache;

/* A key or a value, in signed bytes. */
typedef struct {
    _Alignas(64) int8_t bytes[MAX_HEAD_SIZE];
    float scale;
} rounded_head;

size_t kv_page_bytes(int num_layers, int num_kv_heads, int head_size);
void kv_write(const kv_cache *cache, int page, int layer, int kv_head, int slot, const rounded_head *key,
              const rounded_head *value);

/* One query vector: signed bytes, their scale (softmax scale included), -128 * their sum, and how much it may see. */
typedef struct {
    int8_t *bytes;
    float scale;
    int32_t offset;
    int num_tokens;
    float *out; /* head_size floats */
} query;

enum { QUERIES = 4 };
/* Where one KV head's keys and values are. */
typedef struct {
    const int32_t *pages;
    int layer, kv_head, num_tokens;
} kv_head_cache;

/* Attention of up to QUERIES queries over one KV head; `scores` has room for QUERIES x tokens (rounded up to LANES). `next`
 * is asked for meanwhile. */
void attend(const kv_cache *cache, const kv_head_cache *head, const kv_head_cache *next, const query *queries,
            int num_queries, float *scores, size_t scores_stride);

/* ---- heads (heads.c) ---- */

/* One KV head of a row as the product leaves it: the queries that go with it, its key, its value. */
typedef struct {
    const float *values, *bias; /* NULL: there is none */
    const float *cosines, *sines; /* of the row's position */
} head_input;

/* Fills bytes, scale and offset of each query, where q->bytes points; keys and queries are rotated (Walsh-Hadamard), both,
 * so their product stays. */
void round_heads(const head_input *in, query *queries, int num_queries, rounded_head *key, rounded_head *value,
                   int head_size);

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
