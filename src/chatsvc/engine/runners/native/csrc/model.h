/* What Python calls (library.py): a model's weights and KV cache, and one forward pass over a batch of rows. */
#ifndef CHATSVC_NATIVE_MODEL_H
#define CHATSVC_NATIVE_MODEL_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* A decoder of Llama's family, and the capacity it is loaded with. */
typedef struct {
    int32_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_size, vocabulary_size;
    int32_t max_tokens;     /* of a sequence */
    int32_t max_rows;       /* of a batch */
    int32_t num_pages;      /* of the KV cache */
    int32_t num_threads;    /* the caller's included */
    int32_t has_bias;       /* of queries, keys and values */
    int32_t is_tied;        /* the embedding is the output head, too */
    int32_t is_interleaved; /* pairs of the rotary embedding are adjacent rows, as in Llama's GGUF files */
    int32_t has_qk_norm;    /* query and key heads are normalised before the rotary embedding */
    float epsilon;          /* of RMSNorm */
    float rope_factor;      /* by which cosines and sines are multiplied */
    const float *rope_frequencies; /* [head_size / 2], radians a token; read by model_new only */
    const uint8_t *is_without_rope; /* [num_layers]: the layer has no rotary embedding; read by model_new only */
} model_shape;

/* One pass. A row is a token; sequence s has rows [first_rows[s], first_rows[s + 1]). `width` below is
 * vocabulary_size rounded up to LANES. */
typedef struct {
    int32_t num_rows, num_sequences, num_outputs, pages_stride, largest_stride, allowed_stride;
    const int32_t *ids;         /* [num_rows]: token ids */
    const int32_t *first_rows;  /* [num_sequences + 1] */
    const int32_t *starts;      /* [num_sequences]: the position of a sequence's first row */
    const int32_t *pages;       /* [num_sequences][pages_stride]: cache pages of a sequence, from its first token on */
    const int32_t *output_rows; /* [num_outputs], ascending: the rows whose logits are requested */
    const int32_t *num_largest; /* [num_outputs]: how many of the largest logits; 0 requests all */
    const int32_t *masks;       /* [num_outputs]: the row of `allowed` that an output obeys; -1: every id is allowed */
    /* [..][allowed_stride], bit i % 32 of word i / 32 is set where id i is allowed, no bit at vocabulary_size or above.
     * The largest logits are those of allowed ids; where fewer are allowed, -INFINITY follows. Not applied to `logits`
     * where all are requested. */
    const uint32_t *allowed;
    int32_t *largest_ids;       /* [num_outputs][largest_stride]: ids of the largest logits, largest first */
    float *largest_logits;      /* [num_outputs][largest_stride] */
    float *logits;              /* [num_outputs][width]: all logits where num_largest is 0, else working memory */
    int32_t *is_finite; /* [num_outputs]: 0 where the row or a logit is not finite; its results are undefined then */
} model_batch;

/* Python mirrors the structs above and the enums below: mirror.c exports them, library.py compares at load. */
typedef enum { EMBEDDING, HEAD, QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, NUM_MATRICES } model_matrix;
typedef enum {
    FINAL_NORM, ATTENTION_NORM, MLP_NORM, BIAS, MEAN_KEY_BIAS, QUERY_NORM, KEY_NORM, NUM_VECTORS
} model_vector;
/* How numbers are stored in a weight file. */
typedef enum { FLOAT32, FLOAT16, BFLOAT16, Q8_0, NUM_NUMBERS } model_number;

/* Where a pass spends its time; ROUNDING is normalising and rounding rows, HEADS preparing and caching them. */
typedef enum {
    EMBEDDINGS, ROUNDING, QKV, HEADS, ATTENTION, ATTENTION_OUTPUT, GATE_UP, MLP_DOWN, LOGITS, NUM_PHASES
} model_phase;

/* A name that C and Python share, and its value: an offset or size in bytes, or an enumerator. */
typedef struct {
    const char *name;
    int32_t value;
} mirrored;

/* All of them; the last one's name is NULL. */
EXPORT const mirrored *model_mirrored(void);

typedef struct model model;

EXPORT model *model_new(const model_shape *shape); /* NULL: not enough memory */
EXPORT void model_free(model *m);
/* Packs rows [first, first + num_rows) of a weight matrix, stored as `number` says, contiguous. */
EXPORT void model_set_rows(model *m, int which, int layer, int first, int num_rows, int number, const void *data);
/* Copies a vector: [hidden_size]; for BIAS the biases of all queries, then of all keys, then of all values; for
 * QUERY_NORM and KEY_NORM [head_size]; for MEAN_KEY_BIAS [num_kv_heads][head_size], what to subtract from rotated keys
 * (balancing.py), pairs half a head apart. */
EXPORT void model_set_vector(model *m, int which, int layer, const float *data);
/* seconds[NUM_PHASES]: sums over all passes so far. */
EXPORT void model_seconds(const model *m, double *seconds);
/* One pass; writes the batch's keys and values into its pages. Called by one thread at a time. */
EXPORT void model_forward(model *m, const model_batch *batch);
/* Return the cache's memory to the system; pages read as zeros until they are written. */
EXPORT void model_clear_cache(model *m);
/* Fault in an unused cache page so that its first write does not stall. */
EXPORT void model_touch(model *m, int page);
EXPORT void model_copy_page(model *m, int from, int to);
/* The positions of the `k` largest of `n` numbers, largest first, the first position first among equals. */
EXPORT void model_largest(const float *numbers, int n, int k, int32_t *positions);
EXPORT int64_t model_page_bytes(const model_shape *shape);
EXPORT int64_t model_weights_bytes(const model_shape *shape);

#endif
