/* The arithmetic of a forward pass: vectors, quantised matrices, the vocabulary, the KV cache and attention.
 *
 * All of it works on rows; a row is a token. A row's result depends on that row and on its own sequence's cache only,
 * in a fixed order of operations. So batching, the cut of a prompt into chunks, and cached prefixes change no bit of
 * it. (The exception is bounded: vocabulary.c computes only some logits exactly, and says how rarely it could miss
 * one.)
 *
 * Built for x86-64 with AVX-512 F/BW/DQ/VL and VNNI; library.py checks the processor before it loads this.
 */
#ifndef CHATSVC_NATIVE_KERNELS_H
#define CHATSVC_NATIVE_KERNELS_H

#include <immintrin.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    GROUP = 64,       /* numbers that share a scale, and the size of the Hadamard transform applied before rounding */
    LANES = 16,       /* 32-bit numbers in a vector register: outputs of a panel, tokens of a cache tile */
    ROWS = 16,        /* rows of a block: those that share one pass over a panel's weights */
    PAGE_TOKENS = 32, /* two cache tiles */
    MAX_HEAD_SIZE = 2 * GROUP, /* a head has GROUP or MAX_HEAD_SIZE numbers */
};

#define INLINE static inline __attribute__((always_inline))

/* Four adjacent bytes copied to every 32-bit lane: one operand of vpdpbusd. */
INLINE __m512i broadcast_four(const void *bytes) {
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return _mm512_set1_epi32(four);
}

/* -128 times the sum of a group's bytes. Unsigned, because a number that is not finite rounds to the smallest
 * integer, and signed overflow would be undefined. */
INLINE int32_t offset_of(int32_t sum) { return (int32_t)(0u - ((uint32_t)sum << 7)); }

/* Prefetch into L2, which keeps more requests in flight than L1 does. */
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

/* The orthonormal Walsh-Hadamard transform of a group, its own inverse: spreads an outlier over all numbers. */
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

/* 1 / rms(x), by which RMSNorm multiplies a row before its weight; n is a multiple of LANES. */
float rms_factor(const float *x, int n, float epsilon);
/* out[n / GROUP]: the squared length of each group of x * factor * weight; n is a multiple of GROUP. */
void group_energies(float *out, const float *x, float factor, const float *weight, int n);
/* e to the x, to a relative error of about 1e-7; exactly 0 below -87. */
__m512 exp_vector(__m512 x);
/* Whether none of `n` numbers is NaN or infinite. */
int all_finite(const float *numbers, int n);

/* ---- quantised rows and matrices (quantise.c, matmul.c) ---- */

/* Activations as signed bytes: value = scale of its group * byte. They lie in blocks of ROWS rows, interleaved four
 * numbers of a row at a time. `offsets` (see offset_of) correct for weights that are stored with 128 added. */
typedef struct {
    int8_t *bytes;    /* [block][depth / 4][ROWS][4] */
    float *scales;    /* [block][depth / GROUP][ROWS] */
    int32_t *offsets; /* [block][depth / GROUP][ROWS] */
} quantised_rows;

/* A matrix of `width` outputs by `depth` inputs, in panels of LANES outputs; matmul.c describes the layout. */
typedef struct {
    uint8_t *bytes;   /* [panel][depth / GROUP][GROUP / 4][LANES][4], 128 added; or, with `low`, their upper halves */
    uint16_t *scales; /* [panel][depth / GROUP][LANES], IEEE half */
    int width, depth;
    uint8_t *low; /* the lower halves of the bytes, where they are split into two planes (vocabulary.c); else NULL */
} matrix;

/* The index of tile `group` of `panel`. */
static inline size_t tile_number(int depth, int panel, int group) { return (size_t)panel * (depth / GROUP) + group; }

/* Rounds groups [first, last) of the `num_rows` rows of one block. With `weight`, row r is values[r] * factors[r] *
 * weight. */
void quantise_block(const quantised_rows *to, int block, int num_rows, int depth, int first, int last,
                    const float *const *values, const float *factors, const float *weight);
/* Transforms a group of weights and rounds it to bytes with 128 added; returns its scale, an IEEE half. */
uint16_t round_weights(const float *values, uint8_t *bytes);
/* Packs the `depth` float32 weights of one output. */
void pack_row(matrix *m, int output, const float *values);

/* What is done with a product. GATED: panels alternate between gate and up, and half as many outputs, silu(gate) *
 * up, are stored. STORE_JOINED: like STORE, for a matrix split into planes. PEAK: of such a matrix only the upper
 * plane is read, and of each panel only the largest output is stored, at out[row * stride + panel]. */
typedef enum { STORE, ADD, GATED, STORE_JOINED, PEAK } epilogue;
/* Outputs of panels [first, last) for `num_rows` rows: out[row * stride + output] = (or, with ADD, +=) the product. */
void multiply_panels(const matrix *m, const quantised_rows *rows, int num_rows, int first, int last, float *out,
                     size_t stride, epilogue how);

/* ---- the vocabulary: embeddings, and the largest logits (vocabulary.c) ---- */

/* A matrix whose bytes are split into two planes of half bytes, each in tiles like a matrix's of half the size. */
typedef struct {
    matrix planes;
    uint16_t *largest_scales; /* of a panel's outputs: [depth / GROUP][panels rounded up to LANES], IEEE half */
} vocabulary;

/* Up to so many of the largest logits of each of up to so many rows are found by computing candidate panels only.
 * With more logits most panels are candidates; with more rows computing takes longer than reading. Then all are
 * computed. */
enum { MAX_PRUNED_LARGEST = 16, MAX_PRUNED_ROWS = 8 };

/* The panels that may hold one of a row's largest logits. */
typedef struct {
    float *bounds;   /* [panel]: how far the estimated peak may be off */
    int32_t *slots;  /* [panel]: its index in `panels`, if it is a candidate */
    int32_t *panels; /* [num_panels]: the candidates, ascending */
    int num_panels;
    float *logits; /* [num_panels][LANES] */
} candidate_panels;

size_t vocabulary_bytes(int width, int depth);
/* Places a vocabulary at `at`; returns the first address after it. */
uint8_t *place_vocabulary(vocabulary *v, int width, int depth, uint8_t *at);
/* Packs the `depth` float32 weights of one token. Tokens of one panel must be packed by one thread. */
void pack_token(vocabulary *v, int token, const float *values);
/* The `depth` weights of a token as float32: its embedding. */
void unpack_token(const vocabulary *v, int token, float *out);
/* Which of a panel's ids are allowed: bit `lane` of the result. */
static inline __mmask16 allowed_lanes(const uint32_t *allowed, int panel) {
    return (__mmask16)(allowed[panel / 2] >> panel % 2 * LANES);
}
/* Chooses the panels that may hold one of the `num_largest` largest logits of a row among the `allowed` ids (NULL: all
 * are), and sets `bit` for each in `marks`[panel]. `peaks`[panel] are estimates of the panels' largest logits, `energies` the row's group_energies,
 * `workspace` has room for num_largest numbers. */
void choose_candidates(const vocabulary *v, const float *peaks, int num_largest, const uint32_t *allowed,
                       const float *energies, int32_t *workspace, candidate_panels *candidates, uint16_t bit,
                       _Atomic uint16_t *marks);
void prefetch_panel(const vocabulary *v, int panel);
/* The logits of a panel for those rows of a block whose bits are set; candidates[row of the block]. */
void compute_candidates(const vocabulary *v, const quantised_rows *rows, int block, int num_rows, int panel,
                        uint16_t bits, const candidate_panels *candidates);
/* The `num_largest` largest of the candidates' logits, largest first, the smaller id first among equals; -INFINITY
 * follows where fewer ids are allowed. */
void largest_of_candidates(const vocabulary *v, const candidate_panels *candidates, int num_largest,
                           const uint32_t *allowed, int32_t *ids, float *logits);
/* Replaces the logits of ids of `panel`, [LANES], that are not allowed by -INFINITY. */
void mask_panel(float *logits, const uint32_t *allowed, int panel);

/* The positions of the `k` largest of `n` numbers, largest first, the first position first among equals (top.c). */
void find_largest(const float *numbers, int n, int k, int32_t *positions);

/* ---- the KV cache and attention (attention.c) ---- */

/* A page holds PAGE_TOKENS tokens of every layer and KV head; attention.c describes the layout. */
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
/* `slot` is the token's place in the page, 0 to PAGE_TOKENS - 1. */
void kv_write(const kv_cache *cache, int page, int layer, int kv_head, int slot, const rounded_head *key,
              const rounded_head *value);

/* One query head of one row. */
typedef struct {
    int8_t *bytes;  /* [head_size] */
    float scale;    /* 1 / sqrt(head_size) included */
    int32_t offset; /* of the bytes, see offset_of */
    int num_tokens; /* of the sequence, from its first on, that it attends to */
    float *out;     /* [head_size] */
} query;

enum { QUERIES = 4 };
/* Where one KV head's keys and values are. */
typedef struct {
    const int32_t *pages; /* of the sequence */
    int layer, kv_head, num_tokens;
} kv_head_cache;

/* Attention of up to QUERIES queries over one KV head. `scores` is [QUERIES][scores_stride], scores_stride at least
 * the number of tokens rounded up to LANES. The beginning of `next` is prefetched meanwhile. */
void attend(const kv_cache *cache, const kv_head_cache *head, const kv_head_cache *next, const query *queries,
            int num_queries, float *scores, size_t scores_stride);

/* ---- heads (heads.c) ---- */

/* One KV head of a row of the q/k/v product: its queries, its key, its value. */
typedef struct {
    const float *values;          /* [num_queries + 2][head_size] */
    const float *bias;            /* the same shape; NULL: the model has none */
    const float *mean_key_bias;   /* [head_size], subtracted from the rotated key; NULL: the model has none */
    const float *query_norm, *key_norm; /* [head_size], weights of RMSNorm; NULL: the model has none */
    float epsilon;                      /* of RMSNorm */
    const float *cosines, *sines; /* [head_size / 2], of the row's position; cosines is NULL in a layer without rope */
} head_input;

/* Adds the bias, normalises, applies the rotary embedding, rounds. Fills bytes, scale and offset of each query;
 * q->bytes is the caller's. Keys and queries both get the Walsh-Hadamard transform, so their dot products stay the same. */
void round_heads(const head_input *in, query *queries, int num_queries, rounded_head *key, rounded_head *value,
                 int head_size);

#endif
