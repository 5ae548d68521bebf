/* The largest of many numbers: a heap of the k best so far, and sixteen candidates compared with its smallest at once. */
#include "model.h"
#include "native.h"

/* Whether the number at a comes behind that at b in the answer. */
static int is_behind(const float *numbers, int32_t a, int32_t b) {
    return numbers[a] < numbers[b] || (numbers[a] == numbers[b] && a > b);
}

/* places[0] is the one furthest behind. */
static void sink(const float *numbers, int32_t *places, int k, int at) {
    for (;;) {
        int least = at;
        for (int child = 2 * at + 1; child <= 2 * at + 2 && child < k; child++)
            if (is_behind(numbers, places[child], places[least])) least = child;
        if (least == at) return;
        const int32_t moved = places[at];
        places[at] = places[least];
        places[least] = moved;
        at = least;
    }
}

void find_largest(const float *numbers, int n, int k, int32_t *places) {
    for (int i = 0; i < k; i++) places[i] = i;
    for (int i = k / 2 - 1; i >= 0; i--) sink(numbers, places, k, i);
    int i = k;
    while (i < n) {
        if (i + LANES <= n) {
            const __m512 least = _mm512_set1_ps(numbers[places[0]]);
            if (!_mm512_cmp_ps_mask(_mm512_loadu_ps(numbers + i), least, _CMP_GT_OQ)) {
                i += LANES;
                continue;
            }
        }
        for (const int end = i + LANES < n ? i + LANES : n; i < end; i++)
            if (numbers[i] > numbers[places[0]]) {
                places[0] = i;
                sink(numbers, places, k, 0);
            }
    }
    for (int left = k - 1; left > 0; left--) {
        const int32_t last = places[left];
        places[left] = places[0];
        places[0] = last;
        sink(numbers, places, left, 0);
    }
}

void model_largest(const float *numbers, int n, int k, int32_t *places) { find_largest(numbers, n, k, places); }
