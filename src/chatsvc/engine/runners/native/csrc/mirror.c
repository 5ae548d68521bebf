/* The layout of everything that Python mirrors, so that library.py can compare it with its own when it loads this. */
#include "kernels/kernels.h"
#include "model.h"

#define SIZE(type) {#type, sizeof(type)}
#define FIELD(type, name) {#type "." #name, offsetof(type, name)}
#define VALUE_OF(name) {#name, name}

static const mirrored ALL[] = {
    SIZE(model_shape), SIZE(model_batch),
    FIELD(model_shape, hidden_size), FIELD(model_shape, intermediate_size), FIELD(model_shape, num_layers),
    FIELD(model_shape, num_heads), FIELD(model_shape, num_kv_heads), FIELD(model_shape, head_size),
    FIELD(model_shape, vocabulary_size), FIELD(model_shape, max_tokens), FIELD(model_shape, max_rows),
    FIELD(model_shape, num_pages), FIELD(model_shape, num_threads), FIELD(model_shape, has_bias),
    FIELD(model_shape, is_tied), FIELD(model_shape, is_interleaved), FIELD(model_shape, has_qk_norm), FIELD(model_shape, epsilon),
    FIELD(model_shape, rope_factor), FIELD(model_shape, rope_frequencies), FIELD(model_shape, is_without_rope),
    FIELD(model_batch, num_rows), FIELD(model_batch, num_sequences), FIELD(model_batch, num_outputs),
    FIELD(model_batch, pages_stride), FIELD(model_batch, largest_stride), FIELD(model_batch, allowed_stride), FIELD(model_batch, ids),
    FIELD(model_batch, first_rows), FIELD(model_batch, starts), FIELD(model_batch, pages),
    FIELD(model_batch, output_rows), FIELD(model_batch, num_largest), FIELD(model_batch, masks), FIELD(model_batch, allowed),
    FIELD(model_batch, largest_ids),
    FIELD(model_batch, largest_logits), FIELD(model_batch, logits), FIELD(model_batch, is_finite),
    VALUE_OF(EMBEDDING), VALUE_OF(HEAD), VALUE_OF(QUERY), VALUE_OF(KEY), VALUE_OF(VALUE), VALUE_OF(OUTPUT),
    VALUE_OF(GATE), VALUE_OF(UP), VALUE_OF(DOWN), VALUE_OF(NUM_MATRICES),
    VALUE_OF(FINAL_NORM), VALUE_OF(ATTENTION_NORM), VALUE_OF(MLP_NORM), VALUE_OF(BIAS), VALUE_OF(MEAN_KEY_BIAS),
    VALUE_OF(QUERY_NORM), VALUE_OF(KEY_NORM), VALUE_OF(NUM_VECTORS),
    VALUE_OF(FLOAT32), VALUE_OF(FLOAT16), VALUE_OF(BFLOAT16), VALUE_OF(Q8_0), VALUE_OF(NUM_NUMBERS),
    VALUE_OF(NUM_PHASES), VALUE_OF(PAGE_TOKENS), VALUE_OF(GROUP), VALUE_OF(LANES),
    {0},
};

const mirrored *model_mirrored(void) { return ALL; }
