/* Vector arithmetic on float32: normalisation, exponential. */
#include "kernels.h"

float rms_factor(const float *x, int n, float epsilon) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n; i += LANES) {
        const __m512 v = _mm512_loadu_ps(x + i);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    return 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(sum) / (float)n + epsilon);
}

int all_finite(const float *numbers, int n) {
    enum { NOT_FINITE = 0x99 /* quiet and signalling NaN, both infinities */ };
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 lanes = n - i < LANES ? (__mmask16)((1 << (n - i)) - 1) : 0xFFFF;
        if (_mm512_mask_fpclass_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, numbers + i), NOT_FINITE)) return 0;
    }
    return 1;
}

void group_energies(float *out, const float *x, float factor, const float *weight, int n) {
    for (int i = 0; i < n; i += GROUP) {
        __m512 sum = _mm512_setzero_ps();
        for (int j = i; j < i + GROUP; j += LANES) {
            const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + j), _mm512_loadu_ps(weight + j));
            sum = _mm512_fmadd_ps(v, v, sum);
        }
        out[i / GROUP] = factor * factor * _mm512_reduce_add_ps(sum);
    }
}

/* 2^n times a polynomial for e^r on [-ln 2 / 2, ln 2 / 2] (the coefficients are those of Cephes' expf). */
__m512 exp_vector(__m512 x) {
    /* NaN stays NaN: it compares as not less, and the minimum returns its second operand when either is NaN. */
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm512_min_ps(_mm512_set1_ps(88.7f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_maskz_scalef_ps(counts, p, n);
}
