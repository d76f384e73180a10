/* A clock for `guard.py`, loaded before the C library: each look at it is a microsecond later than the last.

   Under callgrind a server is so slow that its turns would end by their time limits, each time elsewhere. */
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static long looks = 0;
    long microseconds = __atomic_add_fetch(&looks, 1, __ATOMIC_RELAXED);
    (void)clock;
    now->tv_sec = 1000000000 + microseconds / 1000000;
    now->tv_nsec = microseconds % 1000000 * 1000;
    return 0;
}
