/* The smallest tool call that lives until it is told to end.
 *
 *   hold [INDEX]     with INDEX: says on stdout when it began to run
 *
 * Ends with status 0 on SIGTERM. What it writes: see struct begun in churn.c.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void end(int number)
{
	(void)number;
	_exit(0);
}

int main(int argc, char **argv)
{
	struct {
		int64_t at;
		int32_t index, pid;
	} begun;
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	signal(SIGTERM, end);
	if (argc > 1) {
		begun.at = t.tv_sec * 1000000000LL + t.tv_nsec;
		begun.index = atoi(argv[1]);
		begun.pid = getpid();
		if (write(STDOUT_FILENO, &begun, sizeof begun) != sizeof begun)
			return 1;
	}
	for (;;)
		pause();
}
