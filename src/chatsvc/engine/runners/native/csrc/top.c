/* The largest of a row of logits. A heap of the k best so far, and sixteen candidates compared with its smallest at once. */
#include "model.h"
#include "native.h"

/* Whether logit a comes behind logit b in the answer. */
static int is_behind(const float *logits, int32_t a, int32_t b) {
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

/* ids[0] is the one furthest behind. */
static void sink(const float *logits, int32_t *ids, int k, int at) {
    for (;;) {
        int least = at;
        for (int child = 2 * at + 1; child <= 2 * at + 2 && child < k; child++)
            if (is_behind(logits, ids[child], ids[least])) least = child;
        if (least == at) return;
        const int32_t moved = ids[at];
        ids[at] = ids[least];
        ids[least] = moved;
        at = least;
    }
}

void model_top(const float *logits, int n, int k, int32_t *ids) {
    for (int i = 0; i < k; i++) ids[i] = i;
    for (int i = k / 2 - 1; i >= 0; i--) sink(logits, ids, k, i);
    int i = k;
    while (i < n) {
        if (i + LANES <= n) {
            const __m512 least = _mm512_set1_ps(logits[ids[0]]);
            if (!_mm512_cmp_ps_mask(_mm512_loadu_ps(logits + i), least, _CMP_GT_OQ)) {
                i += LANES;
                continue;
            }
        }
        for (const int end = i + LANES < n ? i + LANES : n; i < end; i++)
            if (logits[i] > logits[ids[0]]) {
                ids[0] = i;
                sink(logits, ids, k, 0);
            }
    }
    for (int left = k - 1; left > 0; left--) {
        const int32_t last = ids[left];
        ids[left] = ids[0];
        ids[0] = last;
        sink(logits, ids, left, 0);
    }
}
