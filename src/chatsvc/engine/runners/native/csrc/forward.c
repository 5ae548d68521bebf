/* One forward pass over a batch of rows: every thread runs the same phases and takes pieces of each until none is left.
 *
 * A layer's phases: normalise, q/k/v, heads (rotary embedding, cache, queries), attention, its output added; normalise,
 * gate and up, down added. Between phases the threads wait for each other. From the last layer's attention on, only rows
 * that logits are wanted behind are computed: nobody looks at the others any more.
 */
#include "state.h"

#include <time.h>

enum { ATTENTION_ROWS = 16, FEW_PANELS = 64 /* frequent tokens, which are wanted most, have ids beside each other */ };

/* Rows, and how their attention is cut into pieces. */
typedef struct {
    const int32_t *rows; /* which they are, in their order; NULL: the first num_rows */
    int num_rows;
    const attention_item *items;
    int num_items;
} selection;

typedef struct {
    model *m;
    const model_batch *batch;
    selection all, outputs;
} pass;

/* A phase of a pass, as one thread sees it. */
typedef struct {
    _Atomic int32_t *taken; /* of each thread's range, a cache line apart */
    int thread;
} phase;

static phase phase_of(const model *m, int number, int thread) {
    return (phase){m->counters + (size_t)number * team_size(m->team) * COUNTER_STRIDE, thread};
}

/* Take the next `size` of `total` pieces, 0 when none is left. Each thread has a range, the same in every phase: so it
 * mostly goes on with what it has just written itself. When that is done it takes from the others'. */
static int take(const pass *p, phase at, int total, int size, int *first, int *last) {
    const int num_threads = team_size(p->m->team), num_shares = (total + size - 1) / size;
    for (int i = 0; i < num_threads; i++) {
        const int owner = (at.thread + i) % num_threads, end = num_shares * (owner + 1) / num_threads;
        _Atomic int32_t *taken = &at.taken[owner * COUNTER_STRIDE];
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

static void embed(const pass *p, phase at) {
    const int hidden = p->m->shape.hidden_size;
    for (int row, last; take(p, at, p->batch->num_rows, 1, &row, &last);)
        unpack_token(&p->m->embedding, p->batch->ids[row], p->m->hidden + (size_t)row * hidden);
}

static int num_blocks(int num_rows) { return (num_rows + ROWS - 1) / ROWS; }

static int rows_of_block(int block, int num_rows) {
    return num_rows - block * ROWS < ROWS ? num_rows - block * ROWS : ROWS;
}

/* Round rows, with `weight` normalised before; row `i` of the result is row sources[i] of `from`, or row i where there
 * are no sources. A piece is some groups of a block, because rows of a block lie so close in memory that threads that
 * take a row each would wait for each other's writes. */
static void quantise_rows(const pass *p, phase at, const float *from, int depth, const float *weight,
                          const int32_t *sources, int num_rows) {
    const int blocks = num_blocks(num_rows), num_groups = depth / GROUP;
    const int parts = (2 * team_size(p->m->team) + blocks - 1) / blocks;
    for (int piece, end; take(p, at, blocks * parts, 1, &piece, &end);) {
        const int block = piece / parts, part = piece % parts, rows = rows_of_block(block, num_rows);
        const float *values[ROWS];
        float factors[ROWS];
        for (int r = 0; r < rows; r++) {
            const int row = block * ROWS + r;
            values[r] = from + (size_t)(sources ? sources[row] : row) * depth;
            if (weight) factors[r] = rms_factor(values[r], depth, p->m->shape.epsilon);
        }
        const int first = num_groups * part / parts, last = num_groups * (part + 1) / parts;
        quantise_block(&p->m->rows, block, rows, depth, first, last, values, factors, weight);
    }
}

/* How many of `total` pieces a thread takes at a time. */
static int share_of(const pass *p, int total) {
    const int num_shares = team_size(p->m->team) * 8;
    return (total + num_shares - 1) / num_shares;
}

static void multiply(const pass *p, phase at, const matrix *weights, int num_rows, float *out,
                     size_t stride, epilogue how) {
    const int num_panels = (weights->width + LANES - 1) / LANES;
    int size = share_of(p, num_panels);
    if (how == GATE) size += size % 2;
    for (int first, last; take(p, at, num_panels, size, &first, &last);)
        multiply_panels(weights, &p->m->rows, num_rows, first, last, out, stride, how);
}

/* One KV head of one row: its key and value into the cache, and the queries that go with it. */
static void prepare_head(const pass *p, int layer, int row, int kv_head) {
    const model *m = p->m;
    const model_shape *s = &m->shape;
    const int size = s->head_size, share = s->num_heads / s->num_kv_heads;
    const int sequence = m->row_sequences[row];
    const int position = p->batch->starts[sequence] + row - p->batch->first_rows[sequence];
    const size_t first = (size_t)kv_head * (share + 2) * size, slot = (size_t)row * s->num_heads + kv_head * share;
    const head_input in = {.values = m->qkv + (size_t)row * qkv_width(s) + first,
                           .bias = s->has_bias ? m->layers[layer].bias + first : NULL,
                           .cosines = m->cosines + (size_t)position * (size / 2),
                           .sines = m->sines + (size_t)position * (size / 2)};
    query *queries = m->queries + slot;
    for (int i = 0; i < share; i++)
        queries[i] = (query){.bytes = m->query_bytes + (slot + i) * size,
                             .num_tokens = position + 1,
                             .out = m->attended + (slot + i) * size};
    rounded_head key, value;
    round_heads(&in, queries, share, &key, &value, size);
    const int page = p->batch->pages[(size_t)sequence * p->batch->pages_stride + position / PAGE_TOKENS];
    kv_write(&m->cache, page, layer, kv_head, position % PAGE_TOKENS, &key, &value);
}

/* KV heads of `count` rows or items as pieces of work, in an order that gives each thread heads of its own: those that it
 * has computed, and whose outputs it will round. */
typedef struct {
    int which, kv_head;
} head_piece;

static head_piece head_piece_of(const pass *p, int piece, int count) {
    const int num_kv_heads = p->m->shape.num_kv_heads, num_threads = team_size(p->m->team);
    const int num_own = num_kv_heads % num_threads ? num_kv_heads : num_kv_heads / num_threads;
    const int first_head = piece / (count * num_own) * num_own, rest = piece % (count * num_own);
    return (head_piece){rest / num_own, first_head + rest % num_own};
}

static void prepare_heads(const pass *p, phase at, int layer) {
    const int num_rows = p->batch->num_rows, num_pieces = num_rows * p->m->shape.num_kv_heads;
    for (int first, last; take(p, at, num_pieces, share_of(p, num_pieces), &first, &last);)
        for (int piece = first; piece < last; piece++) {
            const head_piece one = head_piece_of(p, piece, num_rows);
            prepare_head(p, layer, one.which, one.kv_head);
        }
}

static kv_head_cache cache_of(const pass *p, int layer, const attention_item *item, int kv_head) {
    const int last = item->first_row + item->num_rows - 1 - p->batch->first_rows[item->sequence];
    return (kv_head_cache){.pages = p->batch->pages + (size_t)item->sequence * p->batch->pages_stride,
                           .layer = layer,
                           .kv_head = kv_head,
                           .num_tokens = p->batch->starts[item->sequence] + last + 1};
}

/* One KV head of one item: its queries, some at a time. */
static void attend_item(const pass *p, const attention_item *item, kv_head_cache head, const kv_head_cache *next,
                        float *scores) {
    const model *m = p->m;
    const int num_heads = m->shape.num_heads, share = num_heads / m->shape.num_kv_heads;
    const int num_queries = item->num_rows * share;
    for (int done = 0; done < num_queries; done += QUERIES) {
        const int some = num_queries - done < QUERIES ? num_queries - done : QUERIES;
        query queries[QUERIES];
        for (int i = 0; i < some; i++) {
            const int row = item->first_row + (done + i) / share;
            queries[i] = m->queries[(size_t)row * num_heads + head.kv_head * share + (done + i) % share];
        }
        head.num_tokens = queries[some - 1].num_tokens; /* the last row sees most */
        attend(&m->cache, &head, next, queries, some, scores, m->scores_stride);
    }
}

static void attend_all(const pass *p, phase at, int layer, const selection *kept) {
    const int num_pieces = kept->num_items * p->m->shape.num_kv_heads;
    float *scores = p->m->scores + at.thread * p->m->scores_stride * QUERIES;
    for (int first, last; take(p, at, num_pieces, share_of(p, num_pieces), &first, &last);)
        for (int piece = first; piece < last; piece++) {
            const int following = piece + 1 < num_pieces ? piece + 1 : piece;
            const head_piece one = head_piece_of(p, piece, kept->num_items);
            const head_piece other = head_piece_of(p, following, kept->num_items);
            const kv_head_cache next = cache_of(p, layer, &kept->items[other.which], other.kv_head);
            const attention_item *item = &kept->items[one.which];
            attend_item(p, item, cache_of(p, layer, item, one.kv_head), &next, scores);
        }
}

/* Move the selected rows to the front. */
static void keep_rows(float *values, int width, const selection *kept) {
    for (int i = 0; i < kept->num_rows; i++)
        if (kept->rows[i] != i)
            memcpy(values + (size_t)i * width, values + (size_t)kept->rows[i] * width, width * sizeof *values);
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

static void run_layer(const pass *p, int number, int thread) {
    const model *m = p->m;
    const int begin = PHASES * (number + 1);
    const model_shape *s = &m->shape;
    const layer_weights *w = &m->layers[number];
    const int is_last = number == s->num_layers - 1, attention = attention_width(s);
    const selection *kept = is_last ? &p->outputs : &p->all;
    int num_rows = p->batch->num_rows;
    quantise_rows(p, phase_of(m, begin + 0, thread), m->hidden, s->hidden_size, w->attention_norm, NULL, num_rows);
    end_phase(p, thread, ROUNDING);
    multiply(p, phase_of(m, begin + 1, thread), &w->qkv, num_rows, m->qkv, w->qkv.width, STORE);
    end_phase(p, thread, QKV);
    prepare_heads(p, phase_of(m, begin + 2, thread), number);
    end_phase(p, thread, HEADS);
    num_rows = kept->num_rows;
    if (!num_rows) return;
    attend_all(p, phase_of(m, begin + 3, thread), number, kept);
    end_phase(p, thread, ATTENTION);
    if (is_last && thread == 0) keep_rows(m->hidden, s->hidden_size, kept);
    quantise_rows(p, phase_of(m, begin + 4, thread), m->attended, attention, NULL, kept->rows, num_rows);
    end_phase(p, thread, ROUNDING);
    multiply(p, phase_of(m, begin + 5, thread), &w->output, num_rows, m->hidden, s->hidden_size, ADD);
    end_phase(p, thread, ATTENTION_OUTPUT);
    quantise_rows(p, phase_of(m, begin + 6, thread), m->hidden, s->hidden_size, w->mlp_norm, NULL, num_rows);
    end_phase(p, thread, ROUNDING);
    multiply(p, phase_of(m, begin + 7, thread), &w->gate_up, num_rows, m->activated, s->intermediate_size, GATE);
    end_phase(p, thread, GATE_UP);
    quantise_rows(p, phase_of(m, begin + 8, thread), m->activated, s->intermediate_size, NULL, NULL, num_rows);
    end_phase(p, thread, ROUNDING);
    multiply(p, phase_of(m, begin + 9, thread), &w->down, num_rows, m->hidden, s->hidden_size, ADD);
    end_phase(p, thread, MLP_DOWN);
}

/* Whether the outputs are so few, and want so few logits each, that most panels need not be looked at closely. */
static int is_seeking(const model_batch *batch) {
    if (batch->num_outputs > MOST_SEEKERS) return 0;
    for (int i = 0; i < batch->num_outputs; i++)
        if (batch->num_largest[i] < 1 || batch->num_largest[i] > MOST_SOUGHT) return 0;
    return 1;
}

/* Each output says which panels it wants. */
static void want_all(const pass *p, phase at, int num_panels) {
    const model *m = p->m;
    const model_batch *batch = p->batch;
    const int hidden = m->shape.hidden_size;
    float *energies = m->scratch + at.thread * m->scratch_stride;
    for (int row, last; take(p, at, batch->num_outputs, 1, &row, &last);) {
        const float *values = m->hidden + (size_t)row * hidden;
        batch->is_finite[row] = all_finite(values, hidden) && all_finite(m->peaks + (size_t)row * num_panels, num_panels);
        if (!batch->is_finite[row]) continue; /* there is no order among its panels */
        group_energies(energies, values, rms_factor(values, hidden, m->shape.epsilon), m->final_norm, hidden);
        m->wanted[row].logits = batch->logits + (size_t)row * num_panels * LANES;
        want_panels(&m->head, m->peaks + (size_t)row * num_panels, batch->num_largest[row], energies,
                    batch->largest_ids + (size_t)row * batch->largest_stride, &m->wanted[row],
                    (uint16_t)(1 << row % ROWS), m->marks + (size_t)(row / ROWS) * num_panels);
    }
}

static void compute_piece(const pass *p, int piece, int num_panels) {
    const model *m = p->m;
    const int block = piece / num_panels;
    const uint16_t bits = atomic_exchange_explicit(&m->marks[piece], 0, memory_order_relaxed);
    compute_wanted(&m->head, &m->rows, block, rows_of_block(block, p->batch->num_outputs), piece % num_panels, bits,
                   m->wanted + (size_t)block * ROWS);
}

/* One that is found is on its way from memory while the one before it is computed. */
static void compute_all_wanted(const pass *p, phase at, int num_panels) {
    const model *m = p->m;
    const int total = num_blocks(p->batch->num_outputs) * num_panels;
    int found = -1;
    for (int first, last; take(p, at, total, FEW_PANELS, &first, &last);)
        for (int piece = first; piece < last; piece++) {
            if (!atomic_load_explicit(&m->marks[piece], memory_order_relaxed)) continue;
            prefetch_panel(&m->head, piece % num_panels);
            if (found >= 0) compute_piece(p, found, num_panels);
            found = piece;
        }
    if (found >= 0) compute_piece(p, found, num_panels);
}

static void find_all_largest(const pass *p, phase at, int num_panels, int is_sought) {
    const model *m = p->m;
    const model_batch *batch = p->batch;
    for (int row, last; take(p, at, batch->num_outputs, 1, &row, &last);) {
        const float *logits = batch->logits + (size_t)row * num_panels * LANES;
        int32_t *ids = batch->largest_ids + (size_t)row * batch->largest_stride;
        float *found = batch->largest_logits + (size_t)row * batch->largest_stride;
        const int num_largest = batch->num_largest[row], hidden = m->shape.hidden_size;
        if (!is_sought)
            batch->is_finite[row] = all_finite(m->hidden + (size_t)row * hidden, hidden) &&
                                    all_finite(logits, num_panels * LANES);
        if (!batch->is_finite[row]) continue;
        if (is_sought) {
            largest_wanted(&m->head, &m->wanted[row], num_largest, ids, found);
        } else if (num_largest) {
            find_largest(logits, m->shape.vocabulary_size, num_largest, ids);
            for (int i = 0; i < num_largest; i++) found[i] = logits[ids[i]];
        }
    }
}

static void run_head(const pass *p, int thread) {
    const model *m = p->m;
    const int begin = 1; /* behind the embeddings' */
    const model_batch *batch = p->batch;
    const int seeking = is_seeking(batch), num_outputs = batch->num_outputs;
    const int num_panels = num_vocabulary_panels(&m->shape);
    quantise_rows(p, phase_of(m, begin + 0, thread), m->hidden, m->shape.hidden_size, m->final_norm, NULL, num_outputs);
    end_phase(p, thread, ROUNDING);
    if (seeking) {
        multiply(p, phase_of(m, begin + 1, thread), &m->head.planes, num_outputs, m->peaks, num_panels, PEAK);
        end_phase(p, thread, LOGITS);
        want_all(p, phase_of(m, begin + 2, thread), num_panels);
        end_phase(p, thread, LOGITS);
        compute_all_wanted(p, phase_of(m, begin + 3, thread), num_panels);
    } else {
        const size_t stride = (size_t)num_panels * LANES;
        multiply(p, phase_of(m, begin + 1, thread), &m->head.planes, num_outputs, batch->logits, stride, STORE_JOINED);
    }
    end_phase(p, thread, LOGITS);
    find_all_largest(p, phase_of(m, begin + 4, thread), num_panels, seeking);
    end_phase(p, thread, LOGITS);
}

static void run(void *context, int thread) {
    const pass *p = context;
    const model *m = p->m;
    const int num_layers = m->shape.num_layers;
    embed(p, phase_of(m, 0, thread));
    end_phase(p, thread, EMBEDDINGS);
    for (int i = 0; i < num_layers; i++) run_layer(p, i, thread);
    if (p->batch->num_outputs) run_head(p, thread);
}

/* Rows beside each other in one sequence become one piece, some at a time. */
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
    const int num_counters = PHASES * (m->shape.num_layers + 1) * team_size(m->team);
    for (int i = 0; i < num_counters; i++) atomic_store(&m->counters[i * COUNTER_STRIDE], 0);
    m->phase_began = now();
    team_run(m->team, run, &p);
}
