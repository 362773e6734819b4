/* The workers and their barrier, for ThreadSanitizer.
 *
 * barrier [CROSSINGS]: about that many crossings, shared out over 2 to 64 threads; exit status 1 where a number that
 * the threads passed on through the barrier was wrong.
 *
 * barrier --race: two threads write one number with no barrier between; ThreadSanitizer must say so.
 *
 * Each round every thread writes its own cell, crosses, reads its neighbor's, crosses again: as the driver's steps do. In
 * every other call rounds are of some of the threads, as in the driver's turns.
 * The cells are plain memory, so that a barrier which orders too little is a data race. */
#include "fastnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    long rounds;
    long cells[64];
    long wrong[64];
    int seen_threads;
} rounds_job;

static void rounds(void *context, int thread, int n_threads, fnn_barrier *barrier) {
    rounds_job *job = context;
    if (thread == 0) job->seen_threads = n_threads;
    for (long r = 0; r < job->rounds; r++) {
        job->cells[thread] = r * 64 + thread;
        fnn_barrier_wait(barrier);
        int neighbor = (thread + 1) % n_threads;
        if (job->cells[neighbor] != r * 64 + neighbor) job->wrong[thread]++;
        fnn_barrier_wait(barrier);
    }
}

/* Rounds among the first threads of a team, whose number changes from turn to turn while the others wait. */
static void turns(void *context, int thread, int n_threads, fnn_barrier *barrier) {
    rounds_job *job = context;
    fnn_barrier *first = fnn_barrier_of_first(barrier);
    if (thread == 0) job->seen_threads = n_threads;
    for (long r = 0; r < job->rounds; r++) {
        int n = 1 + (int)((r * 7 + 3) % n_threads);
        if (thread == 0) fnn_barrier_resize(first, n);
        fnn_barrier_wait(barrier);
        if (thread >= n) continue;
        for (int i = 0; i < 3; i++) {
            job->cells[thread] = r * 64 + thread;
            fnn_barrier_wait(first);
            int neighbor = (thread + 1) % n;
            if (job->cells[neighbor] != r * 64 + neighbor) job->wrong[thread]++;
            fnn_barrier_wait(first);
        }
    }
}

typedef struct {
    volatile long number;
} race_job;

static void race(void *context, int thread, int n_threads, fnn_barrier *barrier) {
    race_job *job = context;
    (void)n_threads;
    fnn_barrier_wait(barrier);
    /* Unordered, as meant. Long enough for both to write at once on a busy machine, too: a thread that only wakes when
     * the other has reached the next barrier is ordered after it. */
    for (int i = 0; i < 20000; i++) job->number += thread + 1;
    fnn_barrier_wait(barrier);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--race") == 0) {
        race_job job = {0};
        for (int i = 0; i < 100; i++) fnn_run(race, &job, 2, 0);
        printf("raced to %ld\n", job.number);
        return 0;
    }
    const long crossings = argc > 1 ? strtol(argv[1], NULL, 10) : 1000000;
    /* threads, share of the crossings in thousandths, whether they may wait awake */
    static const int teams[][3] = {{2, 400, 0}, {2, 200, 1}, {3, 200, 0}, {5, 100, 1},
                                   {8, 70, 0},  {17, 20, 0}, {64, 10, 0}};
    long done = 0, wrong = 0;
    for (size_t t = 0; t < sizeof teams / sizeof *teams; t++) {
        rounds_job job = {.rounds = crossings / 1000 * teams[t][1] / 2};
        /* several calls: teams come and go, as they do in a program */
        const long all = job.rounds, calls = 10;
        for (long c = 0; c < calls; c++) {
            job.rounds = all * (c + 1) / calls - all * c / calls;
            fnn_run(c % 2 ? turns : rounds, &job, teams[t][0], teams[t][2]);
            if (job.seen_threads != teams[t][0]) {
                fprintf(stderr, "%d threads asked for, %d came\n", teams[t][0], job.seen_threads);
                return 1;
            }
        }
        done += 2 * all;
        for (int i = 0; i < teams[t][0]; i++) wrong += job.wrong[i];
    }
    printf("%ld crossings, %ld wrong\n", done, wrong);
    return wrong != 0;
}
