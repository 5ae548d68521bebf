/* Threads that work in step. Between jobs and at barriers a thread spins for a moment, because the next work is
 * usually microseconds away; then it sleeps on a futex, because the machine has other work to do. */
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "team.h"

enum { SPINS = 3000 }; /* tens of microseconds */

struct team {
    int size;
    pthread_t threads[MAX_THREADS];
    team_work work;
    void *context;
    _Atomic uint32_t job;      /* counts up; a new value starts the others */
    _Atomic uint32_t arrived;  /* at the barrier */
    _Atomic uint32_t barrier;  /* counts up when all have arrived */
    _Atomic uint32_t sleepers; /* threads that may be asleep in the kernel */
    _Atomic int is_over;
};

static void wait_change(team *t, _Atomic uint32_t *word, uint32_t seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
        _mm_pause();
    }
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(word) == seen) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&t->sleepers, 1);
}

static void change(team *t, _Atomic uint32_t *word) {
    atomic_fetch_add(word, 1);
    if (atomic_load(&t->sleepers)) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
}

void team_barrier(team *t) {
    const uint32_t seen = atomic_load(&t->barrier);
    if (atomic_fetch_add(&t->arrived, 1) + 1 == (uint32_t)t->size) {
        atomic_store(&t->arrived, 0);
        change(t, &t->barrier);
    } else {
        wait_change(t, &t->barrier, seen);
    }
}

typedef struct {
    team *team;
    int number;
} member;

static void *live(void *argument) {
    const member me = *(member *)argument;
    free(argument);
    for (uint32_t seen = 0;; seen++) {
        wait_change(me.team, &me.team->job, seen);
        if (atomic_load(&me.team->is_over)) return NULL;
        me.team->work(me.team->context, me.number);
        team_barrier(me.team);
    }
}

team *team_new(int num_threads) {
    team *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->size = 1;
    for (int i = 1; i < num_threads && i < MAX_THREADS; i++) {
        member *me = malloc(sizeof *me);
        if (me) *me = (member){t, i};
        if (!me || pthread_create(&t->threads[i], NULL, live, me) != 0) {
            free(me);
            break; /* fewer threads do the same work */
        }
        t->size = i + 1;
    }
    return t;
}

void team_free(team *t) {
    if (!t) return;
    atomic_store(&t->is_over, 1);
    change(t, &t->job);
    for (int i = 1; i < t->size; i++) pthread_join(t->threads[i], NULL);
    free(t);
}

int team_size(const team *t) { return t->size; }

void team_run(team *t, team_work work, void *context) {
    t->work = work;
    t->context = context;
    change(t, &t->job);
    work(context, 0);
    team_barrier(t);
}
