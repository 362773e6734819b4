/* Workers that live as long as one call, and their barrier.
 *
 * No pool: nothing to hang after fork, nothing that spins when idle. The barrier waits awake for a few microseconds
 * where each thread has a core, then sleeps. */
#define _GNU_SOURCE
#include "fastnn.h"

#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
typedef SRWLOCK lock_t;
typedef CONDITION_VARIABLE condition_t;
#define lock_init(l) InitializeSRWLock(l)
#define lock_take(l) AcquireSRWLockExclusive(l)
#define lock_give(l) ReleaseSRWLockExclusive(l)
#define lock_destroy(l) ((void)(l))
#define condition_init(c) InitializeConditionVariable(c)
#define condition_wait(c, l) SleepConditionVariableSRW(c, l, INFINITE, 0)
#define condition_wake_all(c) WakeAllConditionVariable(c)
#define condition_destroy(c) ((void)(c))
typedef HANDLE thread_t;
#else
#include <pthread.h>
#include <signal.h>
#include <time.h>
typedef pthread_mutex_t lock_t;
typedef pthread_cond_t condition_t;
#define lock_init(l) pthread_mutex_init(l, 0)
#define lock_take(l) pthread_mutex_lock(l)
#define lock_give(l) pthread_mutex_unlock(l)
#define lock_destroy(l) pthread_mutex_destroy(l)
#define condition_init(c) pthread_cond_init(c, 0)
#define condition_wait(c, l) pthread_cond_wait(c, l)
#define condition_wake_all(c) pthread_cond_broadcast(c)
#define condition_destroy(c) pthread_cond_destroy(c)
typedef pthread_t thread_t;
#endif

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

/* About 20 to 50 microseconds: longer than any step's imbalance, shorter than a scheduler's slice. */
#define SPINS 2000

struct fnn_barrier {
    lock_t lock;
    condition_t all_here;
    int n_threads, spins;
    /* apart from each other: waiters read `generation` while arrivals count down `missing` */
    char pad0[64];
    int missing;
    char pad1[64];
    unsigned generation;
    int sleepers;
    fnn_barrier *first; /* of the team's first threads */
};

void fnn_barrier_wait(fnn_barrier *barrier) {
    if (barrier->n_threads == 1) return;
    unsigned generation = __atomic_load_n(&barrier->generation, __ATOMIC_RELAXED);
    if (__atomic_sub_fetch(&barrier->missing, 1, __ATOMIC_ACQ_REL) == 0) {
        barrier->missing = barrier->n_threads;
        __atomic_store_n(&barrier->generation, generation + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&barrier->sleepers, __ATOMIC_SEQ_CST)) {
            lock_take(&barrier->lock);
            condition_wake_all(&barrier->all_here);
            lock_give(&barrier->lock);
        }
        return;
    }
    for (int i = 0; i < barrier->spins; i++) {
        if (__atomic_load_n(&barrier->generation, __ATOMIC_ACQUIRE) != generation) return;
        relax();
    }
    lock_take(&barrier->lock);
    __atomic_add_fetch(&barrier->sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&barrier->generation, __ATOMIC_SEQ_CST) == generation)
        condition_wait(&barrier->all_here, &barrier->lock);
    __atomic_sub_fetch(&barrier->sleepers, 1, __ATOMIC_SEQ_CST);
    lock_give(&barrier->lock);
}

static void barrier_init(fnn_barrier *barrier) {
    lock_init(&barrier->lock);
    condition_init(&barrier->all_here);
}

static void barrier_destroy(fnn_barrier *barrier) {
    condition_destroy(&barrier->all_here);
    lock_destroy(&barrier->lock);
}

fnn_barrier *fnn_barrier_of_first(fnn_barrier *barrier) {
    return barrier->first;
}

void fnn_barrier_resize(fnn_barrier *barrier, int n_threads) {
    barrier->n_threads = barrier->missing = n_threads;
}

/* One fnn_run: the workers wait at the gate until it is known how many of them there are. */
typedef struct {
    fnn_task task;
    void *context;
    fnn_barrier barrier, first;
    int open, n_threads;
} team;

typedef struct {
    team *team;
    int thread;
    thread_t handle;
} worker;

static void run_worker(worker *w) {
    team *t = w->team;
    lock_take(&t->barrier.lock);
    while (!t->open) condition_wait(&t->barrier.all_here, &t->barrier.lock);
    lock_give(&t->barrier.lock);
    t->task(t->context, w->thread, t->n_threads, &t->barrier);
}

#if defined(_WIN32)
static DWORD WINAPI worker_main(LPVOID w) {
    run_worker(w);
    return 0;
}
static int start(worker *w) {
    w->handle = CreateThread(0, 0, worker_main, w, 0, 0);
    return w->handle != 0;
}
static void join(worker *w) {
    WaitForSingleObject(w->handle, INFINITE);
    CloseHandle(w->handle);
}
#else
static void *worker_main(void *w) {
    run_worker(w);
    return 0;
}
static int start(worker *w) {
    return pthread_create(&w->handle, 0, worker_main, w) == 0;
}
static void join(worker *w) {
    pthread_join(w->handle, 0);
}
#endif

void fnn_run(fnn_task task, void *context, int n_threads, int may_spin) {
    team t;
    memset(&t, 0, sizeof t);
    t.task = task;
    t.context = context;
    t.barrier.first = &t.first;
    worker *workers = n_threads > 1 ? calloc((size_t)n_threads, sizeof *workers) : 0;
    if (!workers) {
        t.barrier.n_threads = t.first.n_threads = 1;
        task(context, 0, 1, &t.barrier);
        return;
    }
    barrier_init(&t.barrier);
    barrier_init(&t.first);
#if !defined(_WIN32)
    /* signals are the caller's business */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    int n = 1;
    for (; n < n_threads; n++) {
        workers[n].team = &t;
        workers[n].thread = n;
        if (!start(&workers[n])) break;
    }
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, 0);
#endif
    lock_take(&t.barrier.lock);
    t.n_threads = n;
    fnn_barrier_resize(&t.barrier, n);
    fnn_barrier_resize(&t.first, n);
    t.barrier.spins = t.first.spins = may_spin ? SPINS : 0;
    t.open = 1;
    condition_wake_all(&t.barrier.all_here);
    lock_give(&t.barrier.lock);
    task(context, 0, n, &t.barrier);
    for (int i = 1; i < n; i++) join(&workers[i]);
    barrier_destroy(&t.first);
    barrier_destroy(&t.barrier);
    free(workers);
}

ptrdiff_t fnn_take(ptrdiff_t *next, ptrdiff_t n) {
    return __atomic_fetch_add(next, n, __ATOMIC_RELAXED);
}

int fnn_flag_get(const int32_t *flag) {
    return __atomic_load_n(flag, __ATOMIC_RELAXED) != 0;
}

void fnn_flag_set(int32_t *flag) {
    __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}

static void *spare;

void *fnn_spare_take(void) {
    void *block = __atomic_exchange_n(&spare, 0, __ATOMIC_ACQUIRE);
    return block ? block : malloc(FNN_SPARE_BYTES);
}

void fnn_spare_give(void *block) {
    free(__atomic_exchange_n(&spare, block, __ATOMIC_ACQ_REL));
}

double fnn_seconds(void) {
#if defined(_WIN32)
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart / (double)frequency.QuadPart;
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}
