/* One forward pass over a batch of rows. Every thread runs the same phases and takes pieces of each until none is
 * left.
 *
 * A layer's phases: normalise, q/k/v, heads (rotary embedding, cache, queries), attention, its output added;
 * normalise, gate and up, down added. Between phases the threads wait for each other. From the last layer's attention
 * on, only the rows whose logits were requested are computed.
 */
#include "state.h"

#include <time.h>

enum {
    ATTENTION_ROWS = 16,
    CANDIDATE_SHARE = 64, /* panels; small, because the candidates cluster among the frequent tokens' low ids */
};

/* Rows, and how their attention is cut into pieces. */
typedef struct {
    const int32_t *rows; /* [num_rows], ascending; NULL: the first num_rows */
    int num_rows;
    const attention_item *items; /* [num_items] */
    int num_items;
} selection;

typedef struct {
    model *m;
    const model_batch *batch;
    selection all, outputs;
} pass;

/* One thread's way through a pass. Every function below that takes a worker and pieces of work is one phase: it ends
 * it. */
typedef struct {
    const pass *pass;
    int thread;
    int num_ended; /* phases that this thread has ended: all threads run the same ones, so they all count alike */
} worker;

/* How many shares have been taken of each thread's range in phase `number`, COUNTER_STRIDE apart. */
static _Atomic int32_t *counters_of(const worker *w, int number) {
    const model *m = w->pass->m;
    return m->counters + (size_t)(number % 2) * team_size(m->team) * COUNTER_STRIDE;
}

/* Takes the next `size` of `total` pieces of the current phase; 0 when none is left. Each thread has a range of its
 * own, the same in every phase, so it mostly reads what it has just written itself. Then it takes from the others'
 * ranges. */
static int take(const worker *w, int total, int size, int *first, int *last) {
    const int num_threads = team_size(w->pass->m->team), num_shares = (total + size - 1) / size;
    for (int i = 0; i < num_threads; i++) {
        const int owner = (w->thread + i) % num_threads, end = num_shares * (owner + 1) / num_threads;
        _Atomic int32_t *taken = &counters_of(w, w->num_ended)[owner * COUNTER_STRIDE];
        int share = num_shares * owner / num_threads + atomic_load_explicit(taken, memory_order_relaxed);
        if (share >= end) continue;
        share = num_shares * owner / num_threads + atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
        if (share >= end) continue;
        *first = share * size;
        *last = *first + size < total ? *first + size : total;
        return 1;
    }
    return 0;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Waits for all threads. The time since the phase before this one ended is counted as this one's. The next phase uses
 * the counters of the phase before this one, from which no thread takes any more: each thread resets its own. */
static void end_phase(worker *w, model_phase which) {
    model *m = w->pass->m;
    w->num_ended++;
    atomic_store_explicit(&counters_of(w, w->num_ended)[w->thread * COUNTER_STRIDE], 0, memory_order_relaxed);
    team_barrier(m->team);
    if (w->thread) return;
    const double ended = now();
    m->seconds[which] += ended - m->phase_began;
    m->phase_began = ended;
}

static void embed(worker *w) {
    const pass *p = w->pass;
    const int hidden = p->m->shape.hidden_size;
    for (int row, last; take(w, p->batch->num_rows, 1, &row, &last);)
        unpack_token(&p->m->embedding, p->batch->ids[row], p->m->hidden + (size_t)row * hidden);
    end_phase(w, EMBEDDINGS);
}

static int num_blocks(int num_rows) { return (num_rows + ROWS - 1) / ROWS; }

static int rows_of_block(int block, int num_rows) {
    return num_rows - block * ROWS < ROWS ? num_rows - block * ROWS : ROWS;
}

/* Rounds the rows of `from`, [..][depth], normalised with `weight` if there is one. Row i of the result is row
 * sources[i], or i without sources. A piece is some groups of a whole block: the rows of a block are interleaved, and
 * threads that took a row each would write to the same cache lines. */
static void quantise_rows(worker *w, const float *from, int depth, const float *weight, const int32_t *sources,
                          int num_rows) {
    const model *m = w->pass->m;
    const int blocks = num_blocks(num_rows), num_groups = depth / GROUP;
    const int parts = (2 * team_size(m->team) + blocks - 1) / blocks;
    for (int piece, end; take(w, blocks * parts, 1, &piece, &end);) {
        const int block = piece / parts, part = piece % parts, rows = rows_of_block(block, num_rows);
        const float *values[ROWS];
        float factors[ROWS];
        for (int r = 0; r < rows; r++) {
            const int row = block * ROWS + r;
            values[r] = from + (size_t)(sources ? sources[row] : row) * depth;
            if (weight) factors[r] = rms_factor(values[r], depth, m->shape.epsilon);
        }
        const int first = num_groups * part / parts, last = num_groups * (part + 1) / parts;
        quantise_block(&m->rows, block, rows, depth, first, last, values, factors, weight);
    }
    end_phase(w, ROUNDING);
}

/* How many of `total` pieces a thread takes at a time. */
static int share_of(const worker *w, int total) {
    const int num_shares = team_size(w->pass->m->team) * 8;
    return (total + num_shares - 1) / num_shares;
}

/* Where a product goes, [num_rows][stride], and how. */
typedef struct {
    float *out;
    size_t stride;
    epilogue how;
} destination;

/* The product of the rounded rows with `weights`. */
static void multiply(worker *w, model_phase which, const matrix *weights, int num_rows, destination to) {
    const int num_panels = (weights->width + LANES - 1) / LANES;
    int size = share_of(w, num_panels);
    if (to.how == GATED) size += size % 2;
    for (int first, last; take(w, num_panels, size, &first, &last);)
        multiply_panels(weights, &w->pass->m->rows, num_rows, first, last, to.out, to.stride, to.how);
    end_phase(w, which);
}

/* One KV head of one row: its key and value into the cache, and the queries that attend to it. */
static void prepare_head(const pass *p, int layer, int row, int kv_head) {
    const model *m = p->m;
    const model_shape *s = &m->shape;
    const int size = s->head_size, num_queries = s->num_heads / s->num_kv_heads;
    const int sequence = m->row_sequences[row];
    const int position = p->batch->starts[sequence] + row - p->batch->first_rows[sequence];
    const size_t first = (size_t)kv_head * (num_queries + 2) * size;
    const size_t first_query = (size_t)row * s->num_heads + kv_head * num_queries;
    const layer_weights *weights = &m->layers[layer];
    const head_input in = {.values = m->qkv + (size_t)row * qkv_width(s) + first,
                           .bias = s->has_bias ? weights->bias + first : NULL,
                           .mean_key_bias = s->has_bias ? weights->mean_key_bias + kv_head * size : NULL,
                           .query_norm = weights->query_norm,
                           .key_norm = weights->key_norm,
                           .epsilon = s->epsilon,
                           .cosines = weights->has_rope ? m->cosines + (size_t)position * (size / 2) : NULL,
                           .sines = m->sines + (size_t)position * (size / 2)};
    query *queries = m->queries + first_query;
    for (int i = 0; i < num_queries; i++)
        queries[i] = (query){.bytes = m->query_bytes + (first_query + i) * size,
                             .num_tokens = position + 1,
                             .out = m->attended + (first_query + i) * size};
    rounded_head key, value;
    round_heads(&in, queries, num_queries, &key, &value, size);
    const int page = p->batch->pages[(size_t)sequence * p->batch->pages_stride + position / PAGE_TOKENS];
    kv_write(&m->cache, page, layer, kv_head, position % PAGE_TOKENS, &key, &value);
}

/* A KV head of a row or of an attention item. */
typedef struct {
    int which, kv_head;
} head_piece;

/* Piece `piece` of the KV heads of `count` rows or items. Their order gives each thread the same heads in every
 * phase: those whose product it has computed, and whose attention it will round. */
static head_piece head_piece_of(const pass *p, int piece, int count) {
    const int num_kv_heads = p->m->shape.num_kv_heads, num_threads = team_size(p->m->team);
    const int num_own = num_kv_heads % num_threads ? num_kv_heads : num_kv_heads / num_threads;
    const int first_head = piece / (count * num_own) * num_own, rest = piece % (count * num_own);
    return (head_piece){rest / num_own, first_head + rest % num_own};
}

static void prepare_heads(worker *w, int layer) {
    const pass *p = w->pass;
    const int num_rows = p->batch->num_rows, num_pieces = num_rows * p->m->shape.num_kv_heads;
    for (int first, last; take(w, num_pieces, share_of(w, num_pieces), &first, &last);)
        for (int piece = first; piece < last; piece++) {
            const head_piece one = head_piece_of(p, piece, num_rows);
            prepare_head(p, layer, one.which, one.kv_head);
        }
    end_phase(w, HEADS);
}

static kv_head_cache cache_of(const pass *p, int layer, const attention_item *item, int kv_head) {
    const int last = item->first_row + item->num_rows - 1 - p->batch->first_rows[item->sequence];
    return (kv_head_cache){.pages = p->batch->pages + (size_t)item->sequence * p->batch->pages_stride,
                           .layer = layer,
                           .kv_head = kv_head,
                           .num_tokens = p->batch->starts[item->sequence] + last + 1};
}

/* Attention of one item's queries over one KV head, QUERIES at a time. */
static void attend_item(const pass *p, const attention_item *item, kv_head_cache head, const kv_head_cache *next,
                        float *scores) {
    const model *m = p->m;
    const int num_heads = m->shape.num_heads, heads_per_row = num_heads / m->shape.num_kv_heads;
    const int num_queries = item->num_rows * heads_per_row;
    for (int done = 0; done < num_queries; done += QUERIES) {
        const int some = num_queries - done < QUERIES ? num_queries - done : QUERIES;
        query queries[QUERIES];
        for (int i = 0; i < some; i++) {
            const int row = item->first_row + (done + i) / heads_per_row;
            const size_t first_query = (size_t)row * num_heads + head.kv_head * heads_per_row;
            queries[i] = m->queries[first_query + (done + i) % heads_per_row];
        }
        head.num_tokens = queries[some - 1].num_tokens; /* the last row attends to most tokens */
        attend(&m->cache, &head, next, queries, some, scores, m->scores_stride);
    }
}

static void attend_all(worker *w, int layer, const selection *kept) {
    const pass *p = w->pass;
    const int num_pieces = kept->num_items * p->m->shape.num_kv_heads;
    float *scores = p->m->scores + w->thread * p->m->scores_stride * QUERIES;
    for (int first, last; take(w, num_pieces, share_of(w, num_pieces), &first, &last);)
        for (int piece = first; piece < last; piece++) {
            const int following = piece + 1 < num_pieces ? piece + 1 : piece;
            const head_piece one = head_piece_of(p, piece, kept->num_items);
            const head_piece other = head_piece_of(p, following, kept->num_items);
            const kv_head_cache next = cache_of(p, layer, &kept->items[other.which], other.kv_head);
            const attention_item *item = &kept->items[one.which];
            attend_item(p, item, cache_of(p, layer, item, one.kv_head), &next, scores);
        }
    end_phase(w, ATTENTION);
}

/* Moves the selected rows of `values`, [..][width], to the front. */
static void keep_rows(float *values, int width, const selection *kept) {
    for (int i = 0; i < kept->num_rows; i++)
        if (kept->rows[i] != i)
            memcpy(values + (size_t)i * width, values + (size_t)kept->rows[i] * width, width * sizeof *values);
}

static void run_layer(worker *w, int number) {
    const pass *p = w->pass;
    const model *m = p->m;
    const model_shape *s = &m->shape;
    const layer_weights *weights = &m->layers[number];
    const int is_last = number == s->num_layers - 1;
    const selection *kept = is_last ? &p->outputs : &p->all;
    quantise_rows(w, m->hidden, s->hidden_size, weights->attention_norm, NULL, p->batch->num_rows);
    multiply(w, QKV, &weights->qkv, p->batch->num_rows, (destination){m->qkv, weights->qkv.width, STORE});
    prepare_heads(w, number);
    const int num_rows = kept->num_rows;
    if (!num_rows) return;
    attend_all(w, number, kept);
    if (is_last && w->thread == 0) keep_rows(m->hidden, s->hidden_size, kept);
    quantise_rows(w, m->attended, attention_width(s), NULL, kept->rows, num_rows);
    multiply(w, ATTENTION_OUTPUT, &weights->output, num_rows, (destination){m->hidden, s->hidden_size, ADD});
    quantise_rows(w, m->hidden, s->hidden_size, weights->mlp_norm, NULL, num_rows);
    multiply(w, GATE_UP, &weights->gate_up, num_rows, (destination){m->activated, s->intermediate_size, GATED});
    quantise_rows(w, m->activated, s->intermediate_size, NULL, NULL, num_rows);
    multiply(w, MLP_DOWN, &weights->down, num_rows, (destination){m->hidden, s->hidden_size, ADD});
}

/* Whether so few outputs request so few logits each that computing candidate panels only is cheaper. */
static int is_pruned(const model_batch *batch) {
    if (batch->num_outputs > MAX_PRUNED_ROWS) return 0;
    for (int i = 0; i < batch->num_outputs; i++)
        if (batch->num_largest[i] < 1 || batch->num_largest[i] > MAX_PRUNED_LARGEST) return 0;
    return 1;
}

/* The ids that an output may be chosen from; NULL: all. */
static const uint32_t *allowed_of(const model_batch *batch, int row) {
    return batch->masks[row] < 0 ? NULL : batch->allowed + (size_t)batch->masks[row] * batch->allowed_stride;
}

/* Chooses every output's candidate panels from the peaks. */
static void choose_all_candidates(worker *w, int num_panels) {
    const model *m = w->pass->m;
    const model_batch *batch = w->pass->batch;
    const int hidden = m->shape.hidden_size;
    float *energies = m->scratch + w->thread * m->scratch_stride;
    for (int row, last; take(w, batch->num_outputs, 1, &row, &last);) {
        const float *values = m->hidden + (size_t)row * hidden, *peaks = m->peaks + (size_t)row * num_panels;
        batch->is_finite[row] = all_finite(values, hidden) && all_finite(peaks, num_panels);
        if (!batch->is_finite[row]) continue; /* NaN has no order */
        group_energies(energies, values, rms_factor(values, hidden, m->shape.epsilon), m->final_norm, hidden);
        m->candidates[row].logits = batch->logits + (size_t)row * num_panels * LANES;
        choose_candidates(&m->head, peaks, batch->num_largest[row], allowed_of(batch, row), energies,
                          batch->largest_ids + (size_t)row * batch->largest_stride, &m->candidates[row],
                          (uint16_t)(1 << row % ROWS), m->marks + (size_t)(row / ROWS) * num_panels);
    }
    end_phase(w, LOGITS);
}

static void compute_piece(const pass *p, int piece, int num_panels) {
    const model *m = p->m;
    const int block = piece / num_panels;
    const uint16_t bits = atomic_exchange_explicit(&m->marks[piece], 0, memory_order_relaxed);
    compute_candidates(&m->head, &m->rows, block, rows_of_block(block, p->batch->num_outputs), piece % num_panels, bits,
                       m->candidates + (size_t)block * ROWS);
}

/* Each candidate panel is prefetched while the one found before it is computed. */
static void compute_all_candidates(worker *w, int num_panels) {
    const model *m = w->pass->m;
    const int total = num_blocks(w->pass->batch->num_outputs) * num_panels;
    int found = -1;
    for (int first, last; take(w, total, CANDIDATE_SHARE, &first, &last);)
        for (int piece = first; piece < last; piece++) {
            if (!atomic_load_explicit(&m->marks[piece], memory_order_relaxed)) continue;
            prefetch_panel(&m->head, piece % num_panels);
            if (found >= 0) compute_piece(w->pass, found, num_panels);
            found = piece;
        }
    if (found >= 0) compute_piece(w->pass, found, num_panels);
    end_phase(w, LOGITS);
}

static void find_all_largest(worker *w, int num_panels, int pruned) {
    const model *m = w->pass->m;
    const model_batch *batch = w->pass->batch;
    for (int row, last; take(w, batch->num_outputs, 1, &row, &last);) {
        float *logits = batch->logits + (size_t)row * num_panels * LANES;
        int32_t *ids = batch->largest_ids + (size_t)row * batch->largest_stride;
        float *found = batch->largest_logits + (size_t)row * batch->largest_stride;
        const int num_largest = batch->num_largest[row], hidden = m->shape.hidden_size;
        const uint32_t *allowed = allowed_of(batch, row);
        if (!pruned)
            batch->is_finite[row] = all_finite(m->hidden + (size_t)row * hidden, hidden) &&
                                    all_finite(logits, num_panels * LANES);
        if (!batch->is_finite[row]) continue;
        if (pruned) {
            largest_of_candidates(&m->head, &m->candidates[row], num_largest, allowed, ids, found);
        } else if (num_largest) {
            for (int panel = 0; allowed && panel < num_panels; panel++)
                mask_panel(logits + (size_t)panel * LANES, allowed, panel);
            find_largest(logits, m->shape.vocabulary_size, num_largest, ids);
            for (int i = 0; i < num_largest; i++) found[i] = logits[ids[i]];
        }
    }
    end_phase(w, LOGITS);
}

static void run_head(worker *w) {
    const model *m = w->pass->m;
    const model_batch *batch = w->pass->batch;
    const int pruned = is_pruned(batch), num_outputs = batch->num_outputs;
    const int num_panels = num_vocabulary_panels(&m->shape);
    quantise_rows(w, m->hidden, m->shape.hidden_size, m->final_norm, NULL, num_outputs);
    const destination peaks = {m->peaks, num_panels, PEAK};
    const destination logits = {batch->logits, (size_t)num_panels * LANES, STORE_JOINED};
    multiply(w, LOGITS, &m->head.planes, num_outputs, pruned ? peaks : logits);
    if (pruned) {
        choose_all_candidates(w, num_panels);
        compute_all_candidates(w, num_panels);
    }
    find_all_largest(w, num_panels, pruned);
}

static void run(void *context, int thread) {
    worker w = {.pass = context, .thread = thread};
    embed(&w);
    for (int i = 0; i < w.pass->m->shape.num_layers; i++) run_layer(&w, i);
    if (w.pass->batch->num_outputs) run_head(&w);
}

/* Cuts rows into attention items: consecutive rows of one sequence, at most ATTENTION_ROWS each. */
static selection select_rows(const model *m, const int32_t *rows, int num_rows, attention_item *items) {
    int num_items = 0;
    for (int i = 0; i < num_rows; i++) {
        const int row = rows ? rows[i] : i;
        attention_item *before = num_items ? items + num_items - 1 : NULL;
        if (before && before->sequence == m->row_sequences[row] && before->first_row + before->num_rows == row &&
            before->num_rows < ATTENTION_ROWS)
            before->num_rows++;
        else
            items[num_items++] = (attention_item){m->row_sequences[row], row, 1};
    }
    return (selection){rows, num_rows, items, num_items};
}

void model_forward(model *m, const model_batch *batch) {
    for (int s = 0; s < batch->num_sequences; s++)
        for (int row = batch->first_rows[s]; row < batch->first_rows[s + 1]; row++) m->row_sequences[row] = s;
    pass p = {.m = m,
              .batch = batch,
              .all = select_rows(m, NULL, batch->num_rows, m->items),
              .outputs = select_rows(m, batch->output_rows, batch->num_outputs, m->output_items)};
    for (int i = 0; i < 2 * team_size(m->team); i++) atomic_store(&m->counters[i * COUNTER_STRIDE], 0);
    m->phase_began = now();
    team_run(m->team, run, &p);
}
