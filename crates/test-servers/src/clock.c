/* Shifts clocks of the process that preloads it by the values in a file, which a test may change at any time: the wall
 * clock by seconds, and the monotonic clock by the nanoseconds of a simulated suspension. CLOCK_BOOTTIME is unchanged:
 * it counts suspension. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct shift {
  int64_t ahead_s;
  int64_t suspended_ns;
};

static volatile const struct shift *shift;

__attribute__((constructor)) static void map_shift(void) {
  const char *path = getenv("TEST_CLOCK_AHEAD");
  int file = path ? open(path, O_RDONLY) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) shift = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = syscall(SYS_clock_gettime, clock, at);
  if (failed || !shift) return failed;
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) at->tv_sec += shift->ahead_s;
  if (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_MONOTONIC_RAW) {
    int64_t nanos = at->tv_nsec - shift->suspended_ns % 1000000000;
    at->tv_sec -= shift->suspended_ns / 1000000000 + (nanos < 0);
    at->tv_nsec = nanos < 0 ? nanos + 1000000000 : nanos;
  }
  return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
