/* The vocabulary's matrix: embeddings, and logits.
 *
 * This matrix is about a third of a small model's weights, and every step would read all of it to find a handful of
 * large logits. So its bytes are split into two planes. The upper halves give the largest logit of each panel, its
 * peak, to within about a twentieth of the logits' spread. Only panels that may hold one of the largest logits, the
 * candidates, are read whole, and their logits computed by the same operations as in matmul.c.
 *
 * The error of a peak: the lower halves are spread evenly over 16 steps of their group's scale. So the sum of their
 * products with a row has a variance of 16^2 / 12 times the sum over groups of scale^2 * the squared length of the
 * row's group; for a panel, the largest scale of its outputs counts. SIGMAS standard deviations are allowed on either
 * side. For two logits to change order, their difference would have to be off by seven of its own deviations: about
 * once in 10^12.
 */
#include <math.h>

#include "kernels.h"

enum { HALF_TILE = GROUP * LANES / 2 };
static const float SIGMAS = 5.0f, DEVIATION = 4.6188022f /* 16 / sqrt(12) */;

static int num_panels_of(int width) { return (width + LANES - 1) / LANES; }
static int padded_panels(const vocabulary *v) { return (num_panels_of(v->planes.width) + LANES - 1) / LANES * LANES; }
static size_t num_tiles(int width, int depth) { return tile_number(depth, num_panels_of(width), 0); }

size_t vocabulary_bytes(int width, int depth) {
    const size_t num_bytes = num_tiles(width, depth) * (2 * HALF_TILE + LANES * sizeof(uint16_t));
    const size_t largest_scales = (num_panels_of(width) + LANES) * sizeof(uint16_t) * (depth / GROUP);
    return (num_bytes + largest_scales + 63) / 64 * 64;
}

uint8_t *place_vocabulary(vocabulary *v, int width, int depth, uint8_t *at) {
    const size_t plane = num_tiles(width, depth) * HALF_TILE;
    uint16_t *scales = (uint16_t *)(at + 2 * plane);
    v->planes = (matrix){.bytes = at, .low = at + plane, .scales = scales, .width = width, .depth = depth};
    v->largest_scales = scales + num_tiles(width, depth) * LANES;
    return at + vocabulary_bytes(width, depth);
}

/* The byte of a plane's tile that holds the halves of byte `k` of a group of output `lane`, and their shift in it. */
static size_t in_half_tile(int k, int lane) { return (size_t)(k / 8) * (4 * LANES) + (size_t)lane * 4 + k % 4; }
static int shift_of(int k) { return k / 4 % 2 * 4; }

void pack_token(vocabulary *v, int token, const float *values) {
    const int panel = token / LANES, lane = token % LANES;
    for (int i = 0; i < v->planes.depth / GROUP; i++) {
        const size_t tile = tile_number(v->planes.depth, panel, i);
        uint8_t bytes[GROUP];
        const uint16_t scale = round_weights(values + i * GROUP, bytes);
        v->planes.scales[tile * LANES + lane] = scale;
        uint16_t *largest = &v->largest_scales[(size_t)i * padded_panels(v) + panel];
        if (scale > *largest) *largest = scale; /* IEEE halves that are not negative sort like their bits */
        for (int k = 0; k < GROUP; k++) {
            const size_t place = tile * HALF_TILE + in_half_tile(k, lane);
            const uint8_t kept = (uint8_t)(0xF0 >> shift_of(k));
            v->planes.bytes[place] = (uint8_t)((v->planes.bytes[place] & kept) | bytes[k] >> 4 << shift_of(k));
            v->planes.low[place] = (uint8_t)((v->planes.low[place] & kept) | (bytes[k] & 0x0F) << shift_of(k));
        }
    }
}

void unpack_token(const vocabulary *v, int token, float *out) {
    const int panel = token / LANES, lane = token % LANES;
    for (int i = 0; i < v->planes.depth / GROUP; i++, out += GROUP) {
        const size_t tile = tile_number(v->planes.depth, panel, i);
        const float scale = _cvtsh_ss(v->planes.scales[tile * LANES + lane]);
        for (int k = 0; k < GROUP; k++) {
            const size_t place = tile * HALF_TILE + in_half_tile(k, lane);
            const int high = v->planes.bytes[place] >> shift_of(k) & 0x0F;
            const int low = v->planes.low[place] >> shift_of(k) & 0x0F;
            out[k] = scale * (float)(16 * high + low - 128);
        }
        store_group(out, rotated(load_group(out)));
    }
}

/* A lower bound of the `num_largest`-th largest logit: that many panels have a peak of at least it. */
static float least_of_largest(const vocabulary *v, const float *peaks, const float *bounds, int num_largest,
                              int32_t *workspace) {
    float least = INFINITY;
    find_largest(peaks, v->planes.width / LANES, num_largest, workspace);
    for (int i = 0; i < num_largest; i++) least = fminf(least, peaks[workspace[i]] - bounds[workspace[i]]);
    return least;
}

static void bound_peaks(const vocabulary *v, const float *energies, float *bounds) {
    const int num_panels = padded_panels(v);
    for (int panel = 0; panel < num_panels; panel += LANES) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < v->planes.depth / GROUP; i++) {
            const uint16_t *halves = v->largest_scales + (size_t)i * num_panels + panel;
            const __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
            sum = _mm512_fmadd_ps(_mm512_mul_ps(scales, scales), _mm512_set1_ps(energies[i]), sum);
        }
        const __m512 deviations = _mm512_mul_ps(_mm512_sqrt_ps(sum), _mm512_set1_ps(DEVIATION));
        _mm512_storeu_ps(bounds + panel, _mm512_mul_ps(deviations, _mm512_set1_ps(SIGMAS)));
    }
}

/* The same among allowed ids: a panel's peak counts only where all its ids are allowed, since it may be any one's. */
static float least_of_allowed(const vocabulary *v, const float *peaks, const float *bounds, int num_largest,
                              const uint32_t *allowed, float *kept, int32_t *workspace) {
    for (int panel = 0; panel < v->planes.width / LANES; panel++)
        kept[panel] = allowed_lanes(allowed, panel) == 0xFFFF ? peaks[panel] : -INFINITY;
    return least_of_largest(v, kept, bounds, num_largest, workspace);
}

/* A last panel that is not full is left out of the lower bound, because its empty lanes have logits; it is a candidate
 * unless none of its ids is allowed. */
void choose_candidates(const vocabulary *v, const float *peaks, int num_largest, const uint32_t *allowed,
                       const float *energies, int32_t *workspace, candidate_panels *candidates, uint16_t bit,
                       _Atomic uint16_t *marks) {
    const int num_panels = num_panels_of(v->planes.width), num_full = v->planes.width / LANES;
    bound_peaks(v, energies, candidates->bounds);
    float least = -INFINITY;
    if (num_largest < num_full && allowed) /* the candidates' logits are not computed yet: their memory is free */
        least = least_of_allowed(v, peaks, candidates->bounds, num_largest, allowed, candidates->logits, workspace);
    else if (num_largest < num_full)
        least = least_of_largest(v, peaks, candidates->bounds, num_largest, workspace);
    candidates->num_panels = 0;
    for (int panel = 0; panel < num_panels; panel++) {
        if (panel < num_full && peaks[panel] + candidates->bounds[panel] < least) continue;
        if (allowed && !allowed_lanes(allowed, panel)) continue;
        candidates->slots[panel] = candidates->num_panels;
        candidates->panels[candidates->num_panels++] = panel;
        atomic_fetch_or_explicit(&marks[panel], bit, memory_order_relaxed);
    }
}

/* One panel as a matrix. */
static matrix panel_of(const vocabulary *v, int panel) {
    const size_t tile = tile_number(v->planes.depth, panel, 0);
    return (matrix){.bytes = v->planes.bytes + tile * HALF_TILE,
                    .low = v->planes.low + tile * HALF_TILE,
                    .scales = v->planes.scales + tile * LANES,
                    .width = LANES,
                    .depth = v->planes.depth};
}

void prefetch_panel(const vocabulary *v, int panel) {
    const matrix one = panel_of(v, panel);
    prefetch(one.bytes, (size_t)one.depth * LANES / 2);
    prefetch(one.low, (size_t)one.depth * LANES / 2);
}

void compute_candidates(const vocabulary *v, const quantised_rows *rows, int block, int num_rows, int panel,
                        uint16_t bits, const candidate_panels *candidates) {
    const int first = __builtin_ctz(bits), only = (bits & (bits - 1)) == 0;
    const int skipped = only ? first : 0; /* a single row: pass a block that begins with it */
    const size_t place = tile_number(v->planes.depth, block, 0) * ROWS;
    const quantised_rows some = {rows->bytes + place * GROUP + skipped * 4, rows->scales + place + skipped,
                                 rows->offsets + place + skipped};
    const matrix one = panel_of(v, panel);
    float logits[ROWS][LANES];
    multiply_panels(&one, &some, only ? 1 : num_rows, 0, 1, logits[0], LANES, STORE_JOINED);
    for (int row = first; row < num_rows; row++) {
        if (!(bits >> row & 1)) continue;
        float *to = candidates[row].logits + (size_t)candidates[row].slots[panel] * LANES;
        memcpy(to, logits[row - skipped], sizeof logits[0]);
    }
}

void mask_panel(float *logits, const uint32_t *allowed, int panel) {
    _mm512_mask_storeu_ps(logits, ~allowed_lanes(allowed, panel), _mm512_set1_ps(-INFINITY));
}

void largest_of_candidates(const vocabulary *v, const candidate_panels *candidates, int num_largest,
                           const uint32_t *allowed, int32_t *ids, float *logits) {
    int num_logits = candidates->num_panels * LANES;
    if (num_logits && candidates->panels[candidates->num_panels - 1] == v->planes.width / LANES)
        num_logits -= LANES - v->planes.width % LANES; /* the last panel is not full */
    for (int i = 0; allowed && i < candidates->num_panels; i++)
        mask_panel(candidates->logits + (size_t)i * LANES, allowed, candidates->panels[i]);
    const int num_found = num_largest < num_logits ? num_largest : num_logits;
    find_largest(candidates->logits, num_logits, num_found, ids);
    for (int i = 0; i < num_found; i++) {
        logits[i] = candidates->logits[ids[i]];
        ids[i] = candidates->panels[ids[i] / LANES] * LANES + ids[i] % LANES;
    }
    for (int i = num_found; i < num_largest; i++) {
        logits[i] = -INFINITY;
        ids[i] = 0;
    }
}
