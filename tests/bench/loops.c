/* Loops that feel what is attached to page faults, forks, execs and exits; each times itself.
 *
 *   loops faults PASSES MIB     touches MIB of 4 KiB pages and gives them back, PASSES times
 *   loops spawns COUNT          fork, exec of /bin/true and wait, COUNT times
 *
 * Prints nanoseconds of wall time, and of CPU time (of its children, too).
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t cpu(void)
{
	struct rusage self, children;

	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &children);
	return (self.ru_utime.tv_sec + self.ru_stime.tv_sec + children.ru_utime.tv_sec + children.ru_stime.tv_sec) *
		       1000000000LL +
	       (self.ru_utime.tv_usec + self.ru_stime.tv_usec + children.ru_utime.tv_usec + children.ru_stime.tv_usec) *
		       1000LL;
}

static int faults(long passes, size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || madvise(memory, bytes, MADV_NOHUGEPAGE)) {
		perror("loops: memory");
		return 1;
	}
	for (long pass = 0; pass < passes; pass++) {
		for (size_t at = 0; at < bytes; at += 4096)
			*(volatile char *)(memory + at) = 1;
		if (madvise(memory, bytes, MADV_DONTNEED)) {
			perror("loops: MADV_DONTNEED");
			return 1;
		}
	}
	return 0;
}

static int spawns(long count)
{
	static char *const argv[] = {"/bin/true", NULL};

	for (long i = 0; i < count; i++) {
		int status;
		pid_t pid = fork();

		if (pid == 0) {
			execv(argv[0], argv);
			_exit(127);
		}
		if (pid < 0 || waitpid(pid, &status, 0) < 0 || status) {
			perror("loops: /bin/true");
			return 1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	int64_t began, used;
	int failed;

	if (!(argc == 4 && !strcmp(argv[1], "faults")) && !(argc == 3 && !strcmp(argv[1], "spawns"))) {
		fprintf(stderr, "usage: loops faults PASSES MIB | loops spawns COUNT\n");
		return 2;
	}
	used = cpu();
	began = now();
	failed = argc == 4 ? faults(atol(argv[2]), strtoull(argv[3], NULL, 10) << 20) : spawns(atol(argv[2]));
	began = now() - began;
	printf("%lld %lld\n", (long long)began, (long long)(cpu() - used));
	return failed;
}
