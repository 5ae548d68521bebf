/* What Python calls: a model's weights and cache, one forward pass over a batch of rows. */
#ifndef CHATSVC_NATIVE_MODEL_H
#define CHATSVC_NATIVE_MODEL_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* A decoder of Llama's or Qwen2's kind. `max_rows` bounds a batch. With `is_interleaved` a head's rows of the query and
 * key matrices alternate between the first and the second half, as GGUF files of Llama's architecture have them.
 * `rope_frequencies`, one for each pair of numbers of a head, are read by model_new only; cosines and sines are multiplied
 * by `rope_factor`. */
typedef struct {
    int32_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_size, vocabulary_size;
    int32_t max_tokens, max_rows, num_pages, num_threads, has_bias, is_tied, is_interleaved;
    float epsilon, rope_factor;
    const float *rope_frequencies;
} model_shape;

/* Rows are tokens. Sequence s has rows [first_rows[s], first_rows[s + 1]) at positions from starts[s] on, and its cache
 * in the pages pages[s * pages_stride ...]. Output o is behind row output_rows[o], which ascend; the num_largest[o] largest
 * logits are put, largest first, to largest_ids and largest_logits from [o * largest_stride] on; or where that is 0, all
 * to `logits` from o times the vocabulary (rounded up to LANES) on, which otherwise is working memory. is_finite[o] is set
 * to 0 where the row or one of its logits is NaN or infinite: then nothing else is said of that output. */
typedef struct {
    int32_t num_rows, num_sequences, num_outputs, pages_stride, largest_stride;
    const int32_t *ids, *first_rows, *starts, *pages, *output_rows, *num_largest;
    int32_t *largest_ids;
    float *largest_logits, *logits;
    int32_t *is_finite;
} model_batch;

typedef enum { EMBEDDING, HEAD, QUERY, KEY, VALUE, OUTPUT, GATE_ROWS, UP_ROWS, DOWN } model_matrix;
typedef enum { FINAL_NORM, ATTENTION_NORM, MLP_NORM, BIAS } model_vector;
/* How numbers of a file are stored. */
typedef enum { FLOAT32, FLOAT16, BFLOAT16, Q8_0 } model_number;

/* Where a pass spends its time; ROUNDING is normalising and rounding rows, HEADS rotating and caching them. */
typedef enum {
    EMBEDDINGS, ROUNDING, QKV, HEADS, ATTENTION, ATTENTION_OUTPUT, GATE_UP, MLP_DOWN, LOGITS, NUM_PHASES
} model_phase;

typedef struct model model;

EXPORT model *model_new(const model_shape *shape); /* NULL: not enough memory */
EXPORT void model_free(model *m);
/* Rows [first, first + num_rows) of a weight matrix, as they lie in the file. */
EXPORT void model_set_rows(model *m, int which, int layer, int first, int num_rows, int number, const void *data);
EXPORT void model_set_vector(model *m, int which, int layer, const float *data);
/* NUM_PHASES sums over all passes so far. */
EXPORT void model_seconds(const model *m, double *seconds);
EXPORT void model_forward(model *m, const model_batch *batch);
/* Give the cache's memory back; its pages read as zeros until they are written. */
EXPORT void model_clear_cache(model *m);
/* Have a page of the cache in memory that holds nothing. */
EXPORT void model_touch(model *m, int page);
/* Copy what a page of the cache holds to another one. */
EXPORT void model_copy_page(model *m, int from, int to);
/* Where the `k` largest of `n` numbers are, largest first, the first first where they are equal. */
EXPORT void model_largest(const float *numbers, int n, int k, int32_t *places);
EXPORT int64_t model_page_bytes(const model_shape *shape);
EXPORT int64_t model_weights_bytes(const model_shape *shape);

#endif
