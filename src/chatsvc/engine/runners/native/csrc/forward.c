/* One forward pass over a batch of rows: every thread runs the same phases and takes pieces of each until none is left.
 *
 * A layer's phases: normalise, q/k/v, heads (rotary embedding, cache, queries), attention, its output added; normalise,
 * gate and up, down added. Between phases the threads wait for each other.
 */
#include "state.h"

#include <time.h>

enum { ATTENTION_ROWS = 16 };

typedef struct {
    model *m;
    const model_batch *batch;
    int num_items;
} pass;

/* Take the next `size` of `total` pieces of the phase that `counter` counts; 0 when none is left. */
static int take(_Atomic int32_t *counter, int total, int size, int *first, int *last) {
    *first = atomic_fetch_add_explicit(counter, size, memory_order_relaxed);
    *last = *first + size < total ? *first + size : total;
    return *first < total;
}

static void embed(const pass *p, _Atomic int32_t *counter) {
    const int hidden = p->m->shape.hidden_size;
    for (int row, last; take(counter, p->batch->num_rows, 1, &row, &last);)
        unpack_row(&p->m->embedding, p->batch->ids[row], p->m->hidden + (size_t)row * hidden);
}

static void quantise_rows(const pass *p, _Atomic int32_t *counter, const float *values, int depth) {
    for (int row, last; take(counter, p->batch->num_rows, 1, &row, &last);)
        quantise_row(&p->m->rows, row, depth, values + (size_t)row * depth);
}

/* Normalised and quantised: row `i` of the result is row sources[i] of hidden, or row i where there are no sources. */
static void normalise(const pass *p, _Atomic int32_t *counter, const float *weight, const int32_t *sources,
                      int num_rows, int thread) {
    const model *m = p->m;
    float *normed = m->scratch + thread * m->scratch_stride;
    for (int row, last; take(counter, num_rows, 1, &row, &last);) {
        const size_t source = sources ? sources[row] : row;
        rms_norm(normed, m->hidden + source * m->shape.hidden_size, weight, m->shape.hidden_size, m->shape.epsilon);
        quantise_row(&m->rows, row, m->shape.hidden_size, normed);
    }
}

static void multiply(const pass *p, _Atomic int32_t *counter, const matrix *weights, int num_rows, float *out,
                     size_t stride, epilogue how) {
    const int num_panels = (weights->width + LANES - 1) / LANES;
    const int pieces = team_size(p->m->team) * 8;
    int size = (num_panels + pieces - 1) / pieces;
    if (how == GATE) size += size % 2;
    for (int first, last; take(counter, num_panels, size, &first, &last);)
        multiply_panels(weights, &p->m->rows, num_rows, first, last, out, stride, how);
}

static void add_bias(float *head, const float *bias, int n) {
    for (int i = 0; i < n; i += LANES)
        _mm512_storeu_ps(head + i, _mm512_add_ps(_mm512_loadu_ps(head + i), _mm512_loadu_ps(bias + i)));
}

/* Rotary position embedding; a pair is a number of the first half and its fellow in the second. */
static void rope(const model *m, float *head, int position) {
    const int half = m->shape.head_size / 2;
    const float *cosines = m->cosines + (size_t)position * half, *sines = m->sines + (size_t)position * half;
    for (int i = 0; i < half; i += LANES) {
        const __m512 c = _mm512_loadu_ps(cosines + i), s = _mm512_loadu_ps(sines + i);
        const __m512 a = _mm512_loadu_ps(head + i), b = _mm512_loadu_ps(head + half + i);
        _mm512_storeu_ps(head + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        _mm512_storeu_ps(head + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

/* One KV head of one row: its key and value into the cache, and the queries that go with it. */
static void prepare_head(const pass *p, int layer, int row, int kv_head) {
    const model *m = p->m;
    const model_shape *s = &m->shape;
    const int size = s->head_size, share = s->num_heads / s->num_kv_heads;
    const int sequence = m->row_sequences[row];
    const int position = p->batch->starts[sequence] + row - p->batch->first_rows[sequence];
    float *all = m->qkv + (size_t)row * qkv_width(s);
    const float *bias = m->layers[layer].bias;
    for (int i = 0; i < share; i++) {
        const int number = kv_head * share + i;
        float *head = all + (size_t)number * size;
        if (s->has_bias) add_bias(head, bias + (size_t)number * size, size);
        rope(m, head, position);
        rotate_head(head, size);
        const size_t slot = (size_t)row * s->num_heads + number;
        query *q = &m->queries[slot];
        quantise_query(q, m->query_bytes + slot * size, head, size);
        q->num_tokens = position + 1;
        q->out = m->attended + slot * size;
    }
    float *key = all + (size_t)(s->num_heads + kv_head) * size;
    float *value = key + (size_t)s->num_kv_heads * size;
    if (s->has_bias) {
        add_bias(key, bias + (size_t)(s->num_heads + kv_head) * size, size);
        add_bias(value, bias + (size_t)(s->num_heads + s->num_kv_heads + kv_head) * size, size);
    }
    rope(m, key, position);
    rotate_head(key, size);
    const int page = p->batch->pages[(size_t)sequence * p->batch->pages_stride + position / PAGE_TOKENS];
    kv_write(&m->cache, page, layer, kv_head, position % PAGE_TOKENS, key, value);
}

static void prepare_heads(const pass *p, _Atomic int32_t *counter, int layer) {
    const int num_kv_heads = p->m->shape.num_kv_heads, num_pieces = p->batch->num_rows * num_kv_heads;
    const int size = num_pieces / (team_size(p->m->team) * 8) + 1; /* rows beside each other share cache tiles */
    for (int first, last; take(counter, num_pieces, size, &first, &last);)
        for (int piece = first; piece < last; piece++) prepare_head(p, layer, piece / num_kv_heads, piece % num_kv_heads);
}

static void attend_all(const pass *p, _Atomic int32_t *counter, int layer, int thread) {
    const model *m = p->m;
    const int num_kv_heads = m->shape.num_kv_heads, share = m->shape.num_heads / num_kv_heads;
    float *scores = m->scores + thread * m->scores_stride * QUERIES;
    for (int piece, last; take(counter, p->num_items * num_kv_heads, 1, &piece, &last);) {
        const attention_item *item = &m->items[piece / num_kv_heads];
        const int kv_head = piece % num_kv_heads, num_queries = item->num_rows * share;
        const int32_t *pages = p->batch->pages + (size_t)item->sequence * p->batch->pages_stride;
        for (int done = 0; done < num_queries; done += QUERIES) {
            const int some = num_queries - done < QUERIES ? num_queries - done : QUERIES;
            query queries[QUERIES];
            for (int i = 0; i < some; i++)
                queries[i] = m->queries[(size_t)(item->first_row + (done + i) / share) * m->shape.num_heads +
                                        kv_head * share + (done + i) % share];
            attend(&m->cache, pages, layer, kv_head, queries, some, scores, m->scores_stride);
        }
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Wait for all; the time since the last phase ended counts as this one's. */
static void end_phase(const pass *p, int thread, model_phase which) {
    team_barrier(p->m->team);
    if (thread) return;
    const double ended = now();
    p->m->seconds[which] += ended - p->m->phase_began;
    p->m->phase_began = ended;
}

static void run_layer(const pass *p, _Atomic int32_t *counters, int number, int thread) {
    const model *m = p->m;
    const model_shape *s = &m->shape;
    const layer_weights *w = &m->layers[number];
    const int num_rows = p->batch->num_rows, attention = attention_width(s);
    normalise(p, &counters[0], w->attention_norm, NULL, num_rows, thread);
    end_phase(p, thread, ROUNDING);
    multiply(p, &counters[1], &w->qkv, num_rows, m->qkv, w->qkv.width, STORE);
    end_phase(p, thread, QKV);
    prepare_heads(p, &counters[2], number);
    end_phase(p, thread, HEADS);
    attend_all(p, &counters[3], number, thread);
    end_phase(p, thread, ATTENTION);
    quantise_rows(p, &counters[4], m->attended, attention);
    end_phase(p, thread, ROUNDING);
    multiply(p, &counters[5], &w->output, num_rows, m->hidden, s->hidden_size, ADD);
    end_phase(p, thread, ATTENTION_OUTPUT);
    normalise(p, &counters[6], w->mlp_norm, NULL, num_rows, thread);
    end_phase(p, thread, ROUNDING);
    multiply(p, &counters[7], &w->gate_up, num_rows, m->activated, s->intermediate_size, GATE);
    end_phase(p, thread, GATE_UP);
    quantise_rows(p, &counters[8], m->activated, s->intermediate_size);
    end_phase(p, thread, ROUNDING);
    multiply(p, &counters[9], &w->down, num_rows, m->hidden, s->hidden_size, ADD);
    end_phase(p, thread, MLP_DOWN);
}

static void run(void *context, int thread) {
    const pass *p = context;
    const model *m = p->m;
    _Atomic int32_t *counters = m->counters;
    embed(p, &counters[0]);
    end_phase(p, thread, EMBEDDINGS);
    for (int i = 0; i < m->shape.num_layers; i++) run_layer(p, counters + COUNTERS * (i + 1), i, thread);
    if (!p->batch->num_outputs) return;
    normalise(p, &counters[1], m->final_norm, p->batch->output_rows, p->batch->num_outputs, thread);
    end_phase(p, thread, ROUNDING);
    multiply(p, &counters[2], &m->head, p->batch->num_outputs, p->batch->logits,
             (size_t)(m->head.width + LANES - 1) / LANES * LANES, STORE);
    end_phase(p, thread, LOGITS);
}

static int plan_attention(const model *m, const model_batch *batch) {
    int num_items = 0;
    for (int s = 0; s < batch->num_sequences; s++)
        for (int row = batch->first_rows[s]; row < batch->first_rows[s + 1]; row += ATTENTION_ROWS) {
            const int left = batch->first_rows[s + 1] - row;
            m->items[num_items++] = (attention_item){s, row, left < ATTENTION_ROWS ? left : ATTENTION_ROWS};
        }
    for (int s = 0; s < batch->num_sequences; s++)
        for (int row = batch->first_rows[s]; row < batch->first_rows[s + 1]; row++) m->row_sequences[row] = s;
    return num_items;
}

void model_forward(model *m, const model_batch *batch) {
    pass p = {m, batch, plan_attention(m, batch)};
    for (int i = 0; i < COUNTERS * (m->shape.num_layers + 1); i++) atomic_store(&m->counters[i], 0);
    m->phase_began = now();
    team_run(m->team, run, &p);
}
