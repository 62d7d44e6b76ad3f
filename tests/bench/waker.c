/*
 * Wakes at fixed moments, works for a while, and says how late it was each time: what an interactive tool feels.
 *
 *   waker PERIOD_US WORK_US COUNT
 *
 * "ready" on stdout, then waits for a line; at the end one line: wall and CPU microseconds, then each delay in
 * microseconds. A moment that it was too late for by a whole period is skipped, not made up for.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long us(clockid_t clock)
{
	struct timespec at;

	clock_gettime(clock, &at);
	return at.tv_sec * 1000000LL + at.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	long long period = argc > 1 ? atoll(argv[1]) : 0, work = argc > 2 ? atoll(argv[2]) : 0, due, began;
	int count = argc > 3 ? atoi(argv[3]) : 0, i;
	long long *late;
	char line[16];

	if (period <= 0 || work < 0 || count <= 0 || !(late = calloc(count, sizeof *late))) {
		fprintf(stderr, "usage: waker PERIOD_US WORK_US COUNT, all positive\n");
		return 2;
	}
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		return 1;
	began = us(CLOCK_MONOTONIC);
	due = began + period;
	for (i = 0; i < count; i++) {
		struct timespec at = {due / 1000000, due % 1000000 * 1000};
		long long until, now;

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
			;
		late[i] = us(CLOCK_MONOTONIC) - due;
		for (until = us(CLOCK_PROCESS_CPUTIME_ID) + work; us(CLOCK_PROCESS_CPUTIME_ID) < until;)
			;
		now = us(CLOCK_MONOTONIC);
		due += period;
		if (due < now)
			due += (now - due + period - 1) / period * period;
	}
	printf("%lld %lld", us(CLOCK_MONOTONIC) - began, us(CLOCK_PROCESS_CPUTIME_ID));
	for (i = 0; i < count; i++)
		printf(" %lld", late[i]);
	putchar('\n');
	return 0;
}
