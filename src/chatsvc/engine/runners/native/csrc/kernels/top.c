/* The k largest of many numbers: a heap of the k largest so far; LANES numbers at once are compared with its
 * smallest. */
#include "kernels.h"

/* Whether position a comes after position b in the result. */
static int is_after(const float *numbers, int32_t a, int32_t b) {
    return numbers[a] < numbers[b] || (numbers[a] == numbers[b] && a > b);
}

/* Restores the heap below `at`; its root, positions[0], comes last in the result. */
static void sink(const float *numbers, int32_t *positions, int k, int at) {
    for (;;) {
        int least = at;
        for (int child = 2 * at + 1; child <= 2 * at + 2 && child < k; child++)
            if (is_after(numbers, positions[child], positions[least])) least = child;
        if (least == at) return;
        const int32_t moved = positions[at];
        positions[at] = positions[least];
        positions[least] = moved;
        at = least;
    }
}

void find_largest(const float *numbers, int n, int k, int32_t *positions) {
    for (int i = 0; i < k; i++) positions[i] = i;
    for (int i = k / 2 - 1; i >= 0; i--) sink(numbers, positions, k, i);
    int i = k;
    while (i < n) {
        if (i + LANES <= n) {
            const __m512 least = _mm512_set1_ps(numbers[positions[0]]);
            if (!_mm512_cmp_ps_mask(_mm512_loadu_ps(numbers + i), least, _CMP_GT_OQ)) {
                i += LANES;
                continue;
            }
        }
        for (const int end = i + LANES < n ? i + LANES : n; i < end; i++)
            if (numbers[i] > numbers[positions[0]]) {
                positions[0] = i;
                sink(numbers, positions, k, 0);
            }
    }
    for (int left = k - 1; left > 0; left--) {
        const int32_t last = positions[left];
        positions[left] = positions[0];
        positions[0] = last;
        sink(numbers, positions, left, 0);
    }
}
