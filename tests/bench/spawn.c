/* Times fork, exec and wait of several commands in turn.
 *
 *   spawn ROUNDS PAUSE COMMAND [ARG...] [::: COMMAND [ARG...]]...
 *
 * PAUSE: milliseconds of rest before each.
 * Prints a line for each execution: round, number of the command, nanoseconds, wait status. The order of the commands
 * rotates from round to round, so that none always runs in the shadow of the same other. Nothing is printed before all
 * is measured.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 8 };

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t run(char **argv, long pause, int *status)
{
	struct timespec rest = {pause / 1000, pause % 1000 * 1000000L};
	int64_t began;
	pid_t pid;

	if (pause)
		nanosleep(&rest, NULL);
	began = now();
	pid = vfork();

	if (pid == 0) {
		execv(argv[0], argv);
		_exit(127);
	}
	if (pid < 0) {
		perror("spawn: vfork");
		exit(1);
	}
	while (waitpid(pid, status, 0) < 0)
		if (errno != EINTR) {
			perror("spawn: waitpid");
			exit(1);
		}
	return now() - began;
}

int main(int argc, char **argv)
{
	char **commands[MOST] = {0};
	int64_t *took;
	int *statuses, count = 0, at = 3;
	long rounds = argc > 3 ? strtol(argv[1], NULL, 10) : 0, pause = argc > 3 ? strtol(argv[2], NULL, 10) : 0;

	while (at < argc && count < MOST) {
		commands[count++] = argv + at;
		while (at < argc && strcmp(argv[at], ":::") != 0)
			at++;
		if (at < argc)
			argv[at++] = NULL;
	}
	if (rounds <= 0 || pause < 0 || at < argc) {
		fprintf(stderr, "usage: spawn ROUNDS PAUSE COMMAND [ARG...] [::: COMMAND [ARG...]]... (at most %d)\n", MOST);
		return 2;
	}
	took = calloc((size_t)(rounds * count), sizeof *took);
	statuses = calloc((size_t)(rounds * count), sizeof *statuses);
	if (!took || !statuses) {
		fprintf(stderr, "spawn: no memory for %ld rounds\n", rounds);
		return 1;
	}
	for (long round = 0; round < rounds; round++)
		for (int i = 0; i < count; i++) {
			int command = (int)((round + i) % count);
			long cell = round * count + command;

			took[cell] = run(commands[command], pause, &statuses[cell]);
		}
	for (long cell = 0; cell < rounds * count; cell++)
		printf("%ld %ld %lld %d\n", cell / count, cell % count, (long long)took[cell], statuses[cell]);
	return fflush(stdout) ? 1 : 0;
}
