/* A model's state, shared by model.c and forward.c. */
#ifndef CHATSVC_NATIVE_STATE_H
#define CHATSVC_NATIVE_STATE_H

#include "kernels/kernels.h"
#include "model.h"
#include "team.h"

enum { MAX_RESERVED = 32, COUNTER_STRIDE = 16 /* int32 of a cache line */ };

typedef struct {
    void *memory;
    size_t num_bytes;
} reservation;

typedef struct {
    matrix qkv;             /* qkv_width x hidden; outputs as output_of (model.c) orders them */
    matrix output;          /* hidden x attention_width */
    matrix gate_up;         /* 2 intermediate x hidden; panels of gate and of up alternate */
    matrix down;            /* hidden x intermediate */
    float *attention_norm;  /* [hidden] */
    float *mlp_norm;        /* [hidden] */
    float *bias;            /* [qkv_width] */
    float *mean_key_bias;   /* [num_kv_heads][head_size]: subtracted from every key */
    float *query_norm;      /* [head_size]; NULL: the model has none */
    float *key_norm;        /* the same */
    int has_rope;
} layer_weights;

/* Consecutive rows of one sequence whose attention one thread computes at a time. */
typedef struct {
    int32_t sequence, first_row, num_rows;
} attention_item;

/* In the shapes below, `rows` is max_rows rounded up to ROWS, `panels` those of the vocabulary, `hidden`,
 * `intermediate` and so on are the sizes of model_shape, and `deepest` is the largest depth of a matrix. Numbers have
 * no unit. */
struct model {
    model_shape shape;
    vocabulary embedding; /* vocabulary x hidden */
    vocabulary head;      /* the same; the embedding itself, if is_tied */
    layer_weights *layers; /* [num_layers] */
    float *final_norm;     /* [hidden] */
    float *cosines, *sines; /* [max_tokens][head_size / 2]: rotary embedding, by position */
    kv_cache cache;
    team *team;

    /* Buffers of a pass. */
    float *hidden;             /* [rows][hidden]: the residual stream */
    float *qkv;                /* [rows][qkv_width]: queries, keys and values before bias and rotary embedding */
    float *attended;           /* [rows][num_heads][head_size]: what attention gave */
    float *activated;          /* [rows][intermediate]: silu(gate) * up */
    quantised_rows rows;       /* [rows][deepest]: the input of the next product */
    int8_t *query_bytes;       /* [rows][num_heads][head_size] */
    query *queries;            /* [rows][num_heads] */
    attention_item *items;        /* [at most rows]: all rows of the batch */
    attention_item *output_items; /* [at most rows]: rows whose logits were requested */
    int32_t *row_sequences;    /* [rows]: the sequence of a row */
    float *scores;             /* [threads][QUERIES][scores_stride]: attention scores; max_tokens rounded up to LANES */
    float *scratch;            /* [threads][scratch_stride]: a row of a weight matrix, or energies of a row's groups */
    float *peaks;              /* [rows][panels]: estimates of each panel's largest logit */
    _Atomic uint16_t *marks;   /* [rows / ROWS][panels]: bits of the block's rows that need the panel */
    candidate_panels *candidates; /* [rows] */
    size_t scores_stride, scratch_stride; /* in floats */
    _Atomic int32_t *counters;    /* [2][threads][COUNTER_STRIDE]: shares taken, of this phase and of the next */
    double seconds[NUM_PHASES];   /* sums over all passes */
    double phase_began;           /* monotonic seconds */

    reservation reserved[MAX_RESERVED];
    int num_reserved, is_short; /* is_short: memory could not be reserved */
};

static inline int num_vocabulary_panels(const model_shape *s) { return (s->vocabulary_size + LANES - 1) / LANES; }

static inline int attention_width(const model_shape *s) { return s->num_heads * s->head_size; }

static inline int qkv_width(const model_shape *s) { return (s->num_heads + 2 * s->num_kv_heads) * s->head_size; }

#endif
