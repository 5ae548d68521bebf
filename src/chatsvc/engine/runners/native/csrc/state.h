/* A model's state, shared by model.c and forward.c. */
#ifndef CHATSVC_NATIVE_STATE_H
#define CHATSVC_NATIVE_STATE_H

#include "model.h"
#include "native.h"

enum { MAX_RESERVED = 32, PHASES = 10 /* of a layer */, COUNTER_STRIDE = 16 /* a cache line */ };

typedef struct {
    void *memory;
    size_t num_bytes;
} reservation;

typedef struct {
    matrix qkv, output, gate_up, down;
    float *attention_norm, *mlp_norm, *bias;
} layer_weights;

/* Some rows of one sequence whose attention one thread computes at a time. */
typedef struct {
    int32_t sequence, first_row, num_rows;
} attention_item;

struct model {
    model_shape shape;
    vocabulary embedding, head;
    layer_weights *layers;
    float *final_norm, *cosines, *sines;
    kv_cache cache;
    team *team;

    /* Buffers of a pass: a row is a token. */
    float *hidden, *qkv, *attended, *activated;
    quantised_rows rows;
    int8_t *query_bytes;
    query *queries;
    attention_item *items, *output_items;
    int32_t *row_sequences;
    float *scores, *scratch; /* a part for each thread */
    float *peaks;            /* row x panel of the vocabulary */
    _Atomic uint16_t *marks; /* block x panel: bits of the rows that want it */
    wanted_logits *wanted;   /* of each row */
    size_t scores_stride, scratch_stride;
    _Atomic int32_t *counters; /* work taken: phase of a pass x thread, COUNTER_STRIDE apart */
    double seconds[NUM_PHASES], phase_began;

    reservation reserved[MAX_RESERVED];
    int num_reserved, is_short;
};

/* Panels of the vocabulary. */
static inline int num_vocabulary_panels(const model_shape *s) { return (s->vocabulary_size + LANES - 1) / LANES; }

static inline int attention_width(const model_shape *s) { return s->num_heads * s->head_size; }

static inline int qkv_width(const model_shape *s) { return (s->num_heads + 2 * s->num_kv_heads) * s->head_size; }

#endif
