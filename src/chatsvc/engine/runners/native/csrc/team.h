/* A team of threads that run one function together and meet at barriers. */
#ifndef CHATSVC_NATIVE_TEAM_H
#define CHATSVC_NATIVE_TEAM_H

enum { MAX_THREADS = 64 };

typedef struct team team;
typedef void (*team_work)(void *context, int thread);

/* Starts num_threads - 1 threads, or as many of them as the system allows. NULL: not enough memory. */
team *team_new(int num_threads);
void team_free(team *t);
/* The number of threads, the caller's included. */
int team_size(const team *t);
/* Runs `work` once on every thread, the caller's included, and returns when all have finished. */
void team_run(team *t, team_work work, void *context);
/* Called by every thread inside `work`: returns when all of them have called it. */
void team_barrier(team *t);

#endif
