/* A model's memory: what its weights and cache take, where they lie, how they are filled. forward.c computes. */
#include "state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SYSTEM_PAGE_BYTES = 4096, HUGE_BYTES = 2 << 20, DONTNEED_LOCKED = 24 /* MADV_DONTNEED_LOCKED of Linux 5.18 */ };

/* Zeroed memory, faulted in on first use. */
static void *reserve(model *m, size_t num_bytes) {
    num_bytes = (num_bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    void *memory = mmap(NULL, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || m->num_reserved == MAX_RESERVED) {
        m->is_short = 1;
        return NULL;
    }
    m->reserved[m->num_reserved++] = (reservation){memory, num_bytes};
    return memory;
}

/* In huge pages if the kernel grants them: memory that is read from end to end at every step should cost few TLB
 * misses. */
static void *reserve_large(model *m, size_t num_bytes) {
    void *memory = reserve(m, num_bytes);
    if (memory) madvise(memory, num_bytes, MADV_HUGEPAGE);
    return memory;
}

static size_t matrix_bytes(int width, int depth) {
    const size_t num_tiles = (size_t)((width + LANES - 1) / LANES) * (depth / GROUP);
    return (num_tiles * (GROUP * LANES + LANES * sizeof(uint16_t)) + 63) / 64 * 64;
}

static size_t layer_bytes(const model_shape *s) {
    return matrix_bytes(qkv_width(s), s->hidden_size) + matrix_bytes(s->hidden_size, attention_width(s)) +
           matrix_bytes(2 * s->intermediate_size, s->hidden_size) + matrix_bytes(s->hidden_size, s->intermediate_size);
}

static uint8_t *place(matrix *m, int width, int depth, uint8_t *at) {
    const size_t num_tiles = (size_t)((width + LANES - 1) / LANES) * (depth / GROUP);
    *m = (matrix){.bytes = at, .scales = (uint16_t *)(at + num_tiles * GROUP * LANES), .width = width, .depth = depth};
    return at + matrix_bytes(width, depth);
}

/* One arena for all matrices: separate ones would each waste half a huge page on average. */
static void place_weights(model *m) {
    const model_shape *s = &m->shape;
    uint8_t *at = reserve_large(m, model_weights_bytes(s));
    if (!at) return;
    at = place_vocabulary(&m->embedding, s->vocabulary_size, s->hidden_size, at);
    m->head = m->embedding;
    if (!s->is_tied) at = place_vocabulary(&m->head, s->vocabulary_size, s->hidden_size, at);
    for (int i = 0; i < s->num_layers; i++) {
        layer_weights *layer = &m->layers[i];
        at = place(&layer->qkv, qkv_width(s), s->hidden_size, at);
        at = place(&layer->output, s->hidden_size, attention_width(s), at);
        at = place(&layer->gate_up, 2 * s->intermediate_size, s->hidden_size, at);
        at = place(&layer->down, s->hidden_size, s->intermediate_size, at);
    }
}

static void place_vectors(model *m) {
    const model_shape *s = &m->shape;
    const int qkv = qkv_width(s), keys = s->num_kv_heads * s->head_size, norms = s->has_qk_norm ? 2 * s->head_size : 0;
    const int width = 2 * s->hidden_size + qkv + keys + norms;
    float *at = reserve(m, sizeof(float) * ((size_t)s->num_layers * width + s->hidden_size));
    if (!at) return;
    m->final_norm = at;
    at += s->hidden_size;
    for (int i = 0; i < s->num_layers; i++) {
        m->layers[i].attention_norm = at;
        m->layers[i].mlp_norm = at + s->hidden_size;
        m->layers[i].bias = at + 2 * s->hidden_size;
        m->layers[i].mean_key_bias = m->layers[i].bias + qkv;
        if (norms) {
            m->layers[i].query_norm = m->layers[i].mean_key_bias + keys;
            m->layers[i].key_norm = m->layers[i].query_norm + s->head_size;
        }
        at += width;
    }
}

/* Rotary embedding: cosine and sine for each position and pair, computed in float32 as in training. */
static void fill_rope(model *m) {
    const model_shape *s = &m->shape;
    const int half = s->head_size / 2;
    m->cosines = reserve(m, sizeof(float) * s->max_tokens * half);
    m->sines = reserve(m, sizeof(float) * s->max_tokens * half);
    if (!m->sines || !m->cosines) return;
    for (int i = 0; i < half; i++) {
        for (int position = 0; position < s->max_tokens; position++) {
            const float angle = (float)position * s->rope_frequencies[i];
            m->cosines[(size_t)position * half + i] = cosf(angle) * s->rope_factor;
            m->sines[(size_t)position * half + i] = sinf(angle) * s->rope_factor;
        }
    }
}

static int larger(int a, int b) { return a > b ? a : b; }

static void reserve_outputs(model *m, size_t rows, size_t num_panels) {
    m->peaks = reserve(m, rows * num_panels * sizeof *m->peaks);
    m->marks = reserve(m, rows / ROWS * num_panels * sizeof *m->marks);
    m->candidates = reserve(m, rows * sizeof *m->candidates);
    const size_t stride = (num_panels + LANES - 1) / LANES * LANES;
    float *bounds = reserve(m, rows * stride * sizeof *bounds);
    int32_t *numbers = reserve(m, rows * 2 * stride * sizeof *numbers);
    if (!m->candidates || !bounds || !numbers) return;
    for (size_t i = 0; i < rows; i++)
        m->candidates[i] = (candidate_panels){.bounds = bounds + i * stride,
                                       .slots = numbers + 2 * i * stride,
                                       .panels = numbers + (2 * i + 1) * stride};
}

static void reserve_buffers(model *m) {
    const model_shape *s = &m->shape;
    const size_t rows = (s->max_rows + ROWS - 1) / ROWS * ROWS, attention = attention_width(s);
    const size_t widest = larger(larger(s->hidden_size, s->intermediate_size), (int)attention);
    m->hidden = reserve(m, rows * s->hidden_size * sizeof(float));
    m->qkv = reserve(m, rows * qkv_width(s) * sizeof(float));
    m->attended = reserve(m, rows * attention * sizeof(float));
    m->activated = reserve(m, rows * s->intermediate_size * sizeof(float));
    m->rows.bytes = reserve(m, rows * widest);
    m->rows.scales = reserve(m, rows * widest / GROUP * sizeof(float));
    m->rows.offsets = reserve(m, rows * widest / GROUP * sizeof(int32_t));
    m->query_bytes = reserve(m, rows * attention);
    m->queries = reserve(m, rows * s->num_heads * sizeof(query));
    m->items = reserve(m, rows * sizeof(attention_item));
    m->output_items = reserve(m, rows * sizeof(attention_item));
    m->row_sequences = reserve(m, rows * sizeof(int32_t));
    m->scores_stride = (size_t)(s->max_tokens + LANES - 1) / LANES * LANES;
    m->scores = reserve(m, m->scores_stride * QUERIES * sizeof(float) * team_size(m->team));
    m->scratch = reserve(m, widest * sizeof(float) * team_size(m->team));
    m->scratch_stride = widest;
    reserve_outputs(m, rows, num_vocabulary_panels(s));
    m->counters = reserve(m, (size_t)2 * team_size(m->team) * COUNTER_STRIDE * sizeof *m->counters);
}

model *model_new(const model_shape *shape) {
    model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->shape = *shape;
    m->layers = calloc(shape->num_layers, sizeof *m->layers);
    m->team = team_new(shape->num_threads);
    m->cache = (kv_cache){.num_kv_heads = shape->num_kv_heads,
                          .head_size = shape->head_size,
                          .page_bytes = model_page_bytes(shape)};
    if (m->layers && m->team) {
        m->cache.pages = reserve_large(m, m->cache.page_bytes * shape->num_pages);
        place_weights(m);
        place_vectors(m);
        fill_rope(m);
        for (int i = 0; i < shape->num_layers; i++) m->layers[i].has_rope = !shape->is_without_rope[i];
        m->shape.rope_frequencies = NULL; /* the caller's memory */
        m->shape.is_without_rope = NULL;
        reserve_buffers(m);
        if (!m->is_short) return m;
    }
    model_free(m);
    return NULL;
}

void model_free(model *m) {
    if (!m) return;
    team_free(m->team);
    for (int i = 0; i < m->num_reserved; i++) munmap(m->reserved[i].memory, m->reserved[i].num_bytes);
    free(m->layers);
    free(m);
}

void model_clear_cache(model *m) {
    const size_t num_bytes = m->cache.page_bytes * m->shape.num_pages;
    if (madvise(m->cache.pages, num_bytes, MADV_DONTNEED) != 0) /* the memory is locked if the weights were sealed */
        madvise(m->cache.pages, num_bytes, DONTNEED_LOCKED);
}

static uint8_t *page_at(model *m, int page) { return m->cache.pages + m->cache.page_bytes * page; }

void model_touch(model *m, int page) {
    volatile uint8_t *bytes = page_at(m, page);
    for (size_t i = 0; i < m->cache.page_bytes; i += SYSTEM_PAGE_BYTES) bytes[i] = 0;
}

void model_copy_page(model *m, int from, int to) {
    memcpy(page_at(m, to), page_at(m, from), m->cache.page_bytes);
}

void model_largest(const float *numbers, int n, int k, int32_t *positions) { find_largest(numbers, n, k, positions); }

void model_seconds(const model *m, double *seconds) { memcpy(seconds, m->seconds, sizeof m->seconds); }

int64_t model_page_bytes(const model_shape *s) {
    return (int64_t)kv_page_bytes(s->num_layers, s->num_kv_heads, s->head_size);
}

int64_t model_weights_bytes(const model_shape *s) {
    const size_t vocabulary = vocabulary_bytes(s->vocabulary_size, s->hidden_size);
    return (int64_t)(layer_bytes(s) * s->num_layers + vocabulary * (s->is_tied ? 1 : 2));
}

/* The output of the packed matrix that row `row` of the file's becomes. Each KV head's queries, its key and its value
 * are adjacent, and panels of gate and up alternate. */
static int output_of(const model_shape *s, int which, int row) {
    const int num_queries = s->num_heads / s->num_kv_heads, kv_group = (num_queries + 2) * s->head_size;
    const int head = row / s->head_size;
    if (s->is_interleaved && (which == QUERY || which == KEY)) {
        const int in_head = row % s->head_size;
        row += in_head % 2 * (s->head_size / 2) + in_head / 2 - in_head;
    }
    const int in_head = row % s->head_size;
    switch (which) {
        case QUERY: return head / num_queries * kv_group + head % num_queries * s->head_size + in_head;
        case KEY: return head * kv_group + num_queries * s->head_size + in_head;
        case VALUE: return head * kv_group + (num_queries + 1) * s->head_size + in_head;
        case GATE: return row / LANES * 2 * LANES + row % LANES;
        case UP: return (row / LANES * 2 + 1) * LANES + row % LANES;
        default: return row;
    }
}

static void place_biases(const model_shape *s, float *biases, const float *data) {
    const int counts[] = {attention_width(s), s->num_kv_heads * s->head_size, s->num_kv_heads * s->head_size};
    for (int i = 0; i < 3; data += counts[i++])
        for (int row = 0; row < counts[i]; row++) biases[output_of(s, QUERY + i, row)] = data[row];
}

void model_set_vector(model *m, int which, int layer, const float *data) {
    const model_shape *s = &m->shape;
    const size_t hidden = s->hidden_size * sizeof *data, head = s->head_size * sizeof *data;
    switch (which) {
        case FINAL_NORM: memcpy(m->final_norm, data, hidden); break;
        case ATTENTION_NORM: memcpy(m->layers[layer].attention_norm, data, hidden); break;
        case MLP_NORM: memcpy(m->layers[layer].mlp_norm, data, hidden); break;
        case BIAS: place_biases(s, m->layers[layer].bias, data); break;
        case MEAN_KEY_BIAS:
            memcpy(m->layers[layer].mean_key_bias, data, (size_t)s->num_kv_heads * s->head_size * sizeof *data);
            break;
        case QUERY_NORM: memcpy(m->layers[layer].query_norm, data, head); break;
        case KEY_NORM: memcpy(m->layers[layer].key_norm, data, head); break;
    }
}

/* ---- filling matrices ---- */

enum { Q8_0_BLOCK = 32 };
typedef struct {
    uint16_t scale;
    int8_t bytes[Q8_0_BLOCK];
} q8_0_block;

/* Converts `n` stored numbers to float32; n is a multiple of GROUP. */
static void widen(float *out, const void *data, size_t n, int number) {
    if (number == FLOAT32) {
        memcpy(out, data, n * sizeof *out);
    } else if (number == FLOAT16) {
        for (size_t i = 0; i < n; i += LANES)
            _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const uint16_t *)data + i))));
    } else if (number == BFLOAT16) {
        for (size_t i = 0; i < n; i += LANES) {
            const __m256i halves = _mm256_loadu_si256((const void *)((const uint16_t *)data + i));
            _mm512_storeu_si512(out + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
        }
    } else {
        const q8_0_block *blocks = data;
        for (size_t i = 0; i < n; i++)
            out[i] = _cvtsh_ss(blocks[i / Q8_0_BLOCK].scale) * blocks[i / Q8_0_BLOCK].bytes[i % Q8_0_BLOCK];
    }
}

static size_t row_bytes(int number, int depth) {
    if (number == FLOAT32) return (size_t)depth * 4;
    if (number == Q8_0) return (size_t)depth / Q8_0_BLOCK * sizeof(q8_0_block);
    return (size_t)depth * 2;
}

typedef struct {
    model *model;
    int which, layer, first, num_rows, number;
    const uint8_t *data;
} filling;

static matrix *matrix_of(layer_weights *layer, int which) {
    switch (which) {
        case OUTPUT: return &layer->output;
        case DOWN: return &layer->down;
        case GATE:
        case UP: return &layer->gate_up;
        default: return &layer->qkv;
    }
}

static void fill(void *context, int thread) {
    const filling *f = context;
    model *m = f->model;
    vocabulary *tokens = f->which == EMBEDDING ? &m->embedding : f->which == HEAD ? &m->head : NULL;
    matrix *outputs = tokens ? NULL : matrix_of(&m->layers[f->layer], f->which);
    const int depth = tokens ? tokens->planes.depth : outputs->depth;
    float *row = m->scratch + thread * m->scratch_stride;
    for (int i = 0; i < f->num_rows; i++) {
        if ((f->first + i) / LANES % team_size(m->team) != thread) continue; /* one thread packs a panel */
        widen(row, f->data + i * row_bytes(f->number, depth), depth, f->number);
        if (tokens)
            pack_token(tokens, f->first + i, row);
        else
            pack_row(outputs, output_of(&m->shape, f->which, f->first + i), row);
    }
}

void model_set_rows(model *m, int which, int layer, int first, int num_rows, int number, const void *data) {
    filling f = {m, which, layer, first, num_rows, number, data};
    team_run(m->team, fill, &f);
}
