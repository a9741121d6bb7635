/* A loop over rows on threads that live as long as the call.
 *
 * The caller's thread does the first part, and every part whose thread could not be started: the work is always done,
 * and nothing here can fail. A pool of threads would save 20 us a call and cost a state that outlives it, which a fork
 * breaks. */
#include "parallel.h"

#include <stdbool.h>

#if defined(_WIN32)
#include <process.h>
#include <windows.h>

typedef HANDLE thread;
#define RUN unsigned __stdcall
enum { NOTHING = 0 };

/* Starts a thread; returns whether the system gave one. */
static bool start(thread *id, unsigned(__stdcall *run)(void *), void *argument)
{
    *id = (HANDLE)_beginthreadex(NULL, 0, run, argument, 0, NULL);
    return *id != NULL;
}

/* Waits until a started thread has ended. */
static void join(thread id)
{
    WaitForSingleObject(id, INFINITE);
    CloseHandle(id);
}
#else
#include <pthread.h>

typedef pthread_t thread;
#define RUN void *
#define NOTHING NULL

/* Starts a thread; returns whether the system gave one. */
static bool start(thread *id, void *(*run)(void *), void *argument)
{
    return pthread_create(id, NULL, run, argument) == 0;
}

/* Waits until a started thread has ended. */
static void join(thread id)
{
    pthread_join(id, NULL);
}
#endif

/* Starting a thread costs some 20 us; this much work takes about as long. */
static const size_t elements_worth_a_thread = 1 << 15;

/* One part of the rows. */
struct job {
    ggext_slice slice;
    void *context;
    size_t part;
    size_t begin;
    size_t end;
};

/* Does one job; the function of every thread. */
static RUN run_job(void *argument)
{
    const struct job *job = argument;
    job->slice(job->context, job->part, job->begin, job->end);
    return NOTHING;
}

/* Returns how many parts the work is worth: 1 ... threads, and not more than there are rows. */
static size_t parts_for(size_t n_rows, size_t row_cost, size_t threads)
{
    size_t rows_worth = row_cost >= elements_worth_a_thread ? 1 : elements_worth_a_thread / (row_cost + 1) + 1;
    size_t parts = n_rows / rows_worth;
    if (parts > threads)
        parts = threads;
    if (parts > GGEXT_MAX_THREADS)
        parts = GGEXT_MAX_THREADS;
    return parts > 0 ? parts : 1;
}

size_t ggext_parallel(size_t n_rows, size_t row_cost, size_t threads, ggext_slice slice, void *context)
{
    struct job jobs[GGEXT_MAX_THREADS];
    thread ids[GGEXT_MAX_THREADS];
    bool started[GGEXT_MAX_THREADS] = {false};
    size_t parts = parts_for(n_rows, row_cost, threads);
    size_t share = n_rows / parts;
    size_t extra = n_rows % parts; /* the first `extra` parts get one row more */

    for (size_t i = 0; i < parts; i++) {
        size_t begin = i * share + (i < extra ? i : extra);
        jobs[i] = (struct job){slice, context, i, begin, begin + share + (i < extra)};
    }
    for (size_t i = 1; i < parts; i++)
        started[i] = start(&ids[i], run_job, &jobs[i]);
    for (size_t i = 0; i < parts; i++)
        if (!started[i])
            run_job(&jobs[i]);
    for (size_t i = 1; i < parts; i++)
        if (started[i])
            join(ids[i]);
    return parts;
}
