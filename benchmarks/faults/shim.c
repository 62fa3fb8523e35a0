/* Loaded into every process of a campaign by LD_PRELOAD. While the shared control block is on, chosen calls on chosen
 * files fail or write less than asked, and the wall clock is ahead or behind. See shim.py for the block's fields. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, READ = 2, SYNC = 4, RENAME = 8, SHORT = 16 };

struct control {
  int operations;   /* which of the above fail; 0: none */
  int error;        /* errno of a failing call */
  int remaining;    /* calls that still fail */
  int hits;         /* calls that have failed */
  int spared;       /* process in which nothing happens: the campaign itself */
  int seconds;      /* by which the wall clock is wrong */
  char root[256];   /* path of a chosen file has this */
  char pattern[64]; /* and this */
};

static struct control *control;

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("FAULTS_CONTROL");
  int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped != MAP_FAILED) control = mapped;
  close(fd);
}

static int active(void) { return control && control->spared != getpid(); }

static int chosen(const char *path) {
  if (!strstr(path, control->root) || !strstr(path, control->pattern)) return 0;
  if (__sync_fetch_and_sub(&control->remaining, 1) <= 0) {
    control->remaining = 0;
    return 0;
  }
  __sync_fetch_and_add(&control->hits, 1);
  return 1;
}

static int strikes(int operation, int fd) {
  char link[64], path[4096];
  if (!active() || !(control->operations & operation)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return chosen(path);
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL return errno = control->error, -1

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  if (size > 1 && strikes(SHORT, fd)) return real(fd, data, size / 2);
  if (strikes(WRITE, fd)) FAIL;
  return real(fd, data, size);
}

ssize_t read(int fd, void *data, size_t size) {
  REAL(read);
  if (strikes(READ, fd)) FAIL;
  return real(fd, data, size);
}

int fsync(int fd) {
  REAL(fsync);
  if (strikes(SYNC, fd)) FAIL;
  return real(fd);
}

int rename(const char *from, const char *to) {
  REAL(rename);
  if (active() && (control->operations & RENAME) && chosen(to)) FAIL;
  return real(from, to);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  int result = real(clock, now);
  if (result == 0 && active() && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += control->seconds;
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  REAL(gettimeofday);
  int result = real(now, zone);
  if (result == 0 && active()) now->tv_sec += control->seconds;
  return result;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
